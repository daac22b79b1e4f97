"""A gRPC server as every service has it: limits, health, reflection, one mapping of errors."""

from __future__ import annotations

import asyncio
import inspect
import sys
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lorauter.errors import Internal, InvalidArgument, LorauterError
from lorauter.server.access import Gate, GrpcAccess
from lorauter.server.handlers import inner_of, rewrapped
from lorauter.server.tls import ServerTls
from lorauter.server.traces import grpc_traces
from lorauter.telemetry import get_logger

ERROR_DOMAIN = "lorauter"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Largest message in either direction."""

CONNECTION_MILLISECONDS = 300_000
"""After that, give or take a tenth, clients connect anew and so find servers that were added; calls go on."""

_log = get_logger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class GrpcServer:
    """A grpc.aio server with health and reflection; services are added before start().

    Where there is a ``gate``, callers need a key that allows the method, and only announced services answer.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES, gate: Gate | None = None) -> None:
        self._announced: dict[str, ServiceDescriptor] = {}
        interceptors: list[grpc.aio.ServerInterceptor] = [*grpc_traces(), ErrorInterceptor()]
        if gate is not None:
            interceptors.append(GrpcAccess(gate, self._announced))
        self.server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", 4 * max_message_bytes),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_age_ms", CONNECTION_MILLISECONDS),
            ],
        )
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._names: list[str] = [health.SERVICE_NAME, reflection.SERVICE_NAME]

    def announce(self, service: ServiceDescriptor) -> None:
        """Makes a service, added by its generated function, known to health, reflection and the gate."""
        self._announced[service.full_name] = service
        self._names.append(service.full_name)

    async def start(self, host: str, port: int, tls: ServerTls | None = None) -> int:
        """Listens; returns the port. Health is NOT_SERVING until set_serving(True).

        Exits with status 2 and a message where it cannot listen.
        """
        reflection.enable_server_reflection(self._names, self.server)
        address = f"{host}:{port}"
        try:
            if tls is None:
                bound = self.server.add_insecure_port(address)
            else:
                bound = self.server.add_secure_port(address, tls.credentials())
        except RuntimeError:
            print(
                f"LORAUTER_GRPC_PORT: cannot listen on {address}: the port is taken, or LORAUTER_HOST is not "
                "an address of this machine",
                file=sys.stderr,
            )
            raise SystemExit(2) from None
        await self.set_serving(False)
        await self.server.start()
        return bound

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of all services."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ["", *self._names]:
            await self._health.set(name, status)

    async def stop(self, grace_seconds: float) -> None:
        """Refuses new calls and lets running ones finish for ``grace_seconds``."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_seconds)


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """grpc.health with List, which grpcio's own does not serve."""

    async def List(self, request: Any, context: Context) -> Any:  # noqa: N802
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status)
            for name, status in self._server_status.items()
        }
        return health_pb2.HealthListResponse(statuses=statuses)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns LorauterError into a rich status, and everything else into INTERNAL with an id only."""

    def __init__(self) -> None:
        self._guarded: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        # generated services give the same handler each time, so there are no more of them than methods
        known, guarded = self._guarded.get(method, (None, None))
        if known is not handler:
            guarded = _guarded(handler, method)
            self._guarded[method] = (handler, guarded)
        return guarded


def _guarded(handler: Any, method: str) -> Any:
    guard = _guard_stream if handler.response_streaming else _guard_unary
    return rewrapped(handler, guard(inner_of(handler), method), _tolerant(handler.request_deserializer))


class _Malformed:
    """Stands for a message that could not be read, which gRPC itself would answer with UNKNOWN."""


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    def read(data: bytes) -> Any:
        assert deserialize is not None
        try:
            return deserialize(data)
        except Exception:
            return _Malformed()

    return None if deserialize is None else read


def _readable(request: Any, context: Context) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidArgument("MALFORMED_MESSAGE", "the message is not one of this call: see its proto")
    return _readable_stream(request, context) if hasattr(request, "__aiter__") else request


async def _readable_stream(requests: AsyncIterable[Any], context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request, context)
    # to grpc.aio a caller that went away ends its stream as one that is through: only a dead call cannot send
    try:
        await context.send_initial_metadata(())
    except Exception:
        raise asyncio.CancelledError from None


def _guard_unary(inner: Any, method: str) -> Any:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await inner(_readable(request, context), context)
        except Exception as error:
            await abort(context, error, method)

    return call


def _guard_stream(inner: Any, method: str) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            responses = inner(_readable(request, context), context)
            if inspect.isawaitable(responses):
                await responses  # grpc.health's Watch writes its answers itself
                return
            async for response in responses:
                yield response
        except Exception as error:
            await abort(context, error, method)

    return call


async def abort(context: Context, error: Exception, method: str) -> None:
    """Ends a call with the status of ``error``."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    status = to_status(known_error(error, method))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await context.abort(code, status.message)


def known_error(error: Exception, where: str) -> LorauterError:
    """Returns ``error`` if callers may see it, else logs it and returns Internal with an id."""
    if isinstance(error, LorauterError):
        return error
    correlation_id = uuid.uuid4().hex
    _log.error("server.call.failed", where=where, correlation_id=correlation_id, exc_info=error)
    return Internal(
        "INTERNAL",
        f"internal error; the service's log has it under {correlation_id}",
        correlation_id=correlation_id,
    )


def to_status(error: LorauterError) -> status_pb2.Status:
    """Returns google.rpc.Status with ErrorInfo (AIP-193).

    BadRequest is added where a ``field`` is named, RetryInfo where ``retry_after_seconds`` is.
    """
    details: list[Any] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    ]
    if "field" in error.metadata:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.metadata["field"], description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    seconds = error.metadata.get("retry_after_seconds", "")
    if seconds.isdigit():
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=int(seconds))))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.grpc_status.name), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
