"""Lets callers in by their keys, over gRPC and HTTP alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from lorauter.access import OPEN_SCOPES, Caller, Presented, Scope, calling, read_key, scope_of
from lorauter.errors import LorauterError, Unauthenticated
from lorauter.server.http import Renderer, problem
from lorauter.telemetry import get_logger

KEY_HEADER = "authorization"
TENANT_HEADER = "x-lorauter-tenant"
OPEN_PATHS = frozenset({"/", "/health", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"})
"""What needs no key: probes, Prometheus, and the description of the API."""

DENIED = Counter("lorauter_access_denied_total", "Calls refused for their key, by reason", ["reason"])

_audit = get_logger("lorauter.audit")


class Gate(Protocol):
    """Tells who calls."""

    async def admit(self, authorization: str) -> Caller:
        """Returns the caller who sent this authorization header or metadata, which may be empty.

        Raises Unauthenticated (KEY_MISSING, KEY_MALFORMED, KEY_INVALID, KEY_EXPIRED, KEY_REVOKED),
        Unavailable (KEYS_UNAVAILABLE) where it cannot be told, Exhausted (TOO_MANY_KEYS).
        """
        ...


class OpenGate:
    """Lets everybody do everything, as one tenant; what they send as a key is not looked at."""

    def __init__(self, tenant: str) -> None:
        self._caller = Caller(tenant, OPEN_SCOPES, any_tenant=True)

    async def admit(self, authorization: str) -> Caller:
        """See Gate."""
        return self._caller


def presented_in(authorization: str) -> Presented:
    """Returns the key in an authorization header; raises Unauthenticated (KEY_MISSING, KEY_MALFORMED)."""
    if not authorization:
        raise Unauthenticated("KEY_MISSING", "this needs a key: send `authorization: Bearer lra_...`")
    kind, _, text = authorization.partition(" ")
    presented = read_key(text.strip()) if kind.lower() == "bearer" else None
    if presented is None:
        raise Unauthenticated(
            "KEY_MALFORMED", "the authorization is no lorauter key: send `Bearer lra_...` as it was given out"
        )
    return presented


async def admitted(gate: Gate, headers: Mapping[str, str]) -> Caller:
    """Returns who calls by the headers or the metadata of a call, with names in lower case.

    Raises as Gate.admit, and PermissionDenied (TENANT_NOT_ALLOWED).
    """
    who = await gate.admit(headers.get(KEY_HEADER, ""))
    return who.acting_for(headers.get(TENANT_HEADER, ""))


def denied(error: LorauterError, call: str, who: Caller | None = None) -> None:
    """Writes a refusal into the audit log, and counts it."""
    DENIED.labels(error.reason).inc()
    key_id, tenant = (who.key_id, who.tenant) if who else ("", "")
    _audit.warning("audit.denied", call=call, reason=error.reason, key_id=key_id, tenant=tenant)


class GrpcAccess(grpc.aio.ServerInterceptor):
    """Lets through what the caller's key allows, by the options of the methods; health and reflection always.

    A method of ``services`` without an option is refused. It runs inside of ErrorInterceptor.
    """

    def __init__(self, gate: Gate, services: Mapping[str, ServiceDescriptor]) -> None:
        """``services`` are by full name; more may be added until the server starts."""
        self._gate = gate
        self._services = services
        self._guarded: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        path = str(handler_call_details.method)
        service, _, method = path.lstrip("/").partition("/")
        if handler is None or service not in self._services:
            return handler
        known, guarded = self._guarded.get(path, (None, None))
        if known is not handler:
            guarded = self._guard(handler, path, scope_of(self._services[service], method))
            self._guarded[path] = (handler, guarded)
        return guarded

    def _guard(self, handler: Any, path: str, asked: Scope | None) -> Any:
        async def enter(context: Any) -> None:
            headers = {str(name): str(value) for name, value in context.invocation_metadata() or ()}
            await enter_as(self._gate, headers, asked, path)

        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def answer(request: Any, context: Any) -> Any:
            await enter(context)
            return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await enter(context)
            async for response in inner(request, context):
                yield response

        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = next(name for name in kinds if getattr(handler, name))
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        guard = stream if handler.response_streaming else answer
        return make(guard, handler.request_deserializer, handler.response_serializer)


async def enter_as(gate: Gate, headers: Mapping[str, str], asked: Scope | None, call: str) -> Caller:
    """Returns the caller, and makes it the one of this task; writes what is refused into the audit log.

    Raises as admitted(), and PermissionDenied (SCOPE_MISSING).
    """
    who = None
    try:
        who = await admitted(gate, headers)
        who.require(asked, call)
    except LorauterError as error:
        denied(error, call, who)
        raise
    calling(who)
    return who


class HttpAccess:
    """ASGI middleware: lets in callers whose key allows what ``scope_for(method, path)`` says."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        scope_for: Callable[[str, str], Scope | None] = lambda method, path: Scope.ANY,
        render: Renderer = problem,
    ) -> None:
        self.app = app
        self.gate = gate
        self.scope_for = scope_for
        self.render = render

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            await enter_as(self.gate, headers, self.scope_for(method, path), f"{method} {path}")
        except LorauterError as error:
            refusal = self.render(error.http_status, error.reason, error.message, error.metadata, path)
            if error.http_status == 401:
                refusal.headers["www-authenticate"] = "Bearer"
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)
