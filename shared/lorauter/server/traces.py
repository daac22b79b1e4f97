"""Continues the trace of whoever calls a server, over gRPC and HTTP; only put in where traces are on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorauter import tracing
from lorauter.server.handlers import inner_of, rewrapped

_W3C = ("traceparent", "tracestate")
_UNASKED = frozenset({"GetSnapshot", "GetGeneration", "WhoAmI"})
"""Methods that services ask for all the time: in no trace but one of a caller's own."""
_UNASKED_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/health", "/info", "/v1/models"})
"""The same over HTTP."""


def grpc_traces() -> list[grpc.aio.ServerInterceptor]:
    """Returns what a gRPC server needs to continue traces, outermost: nothing while they are off."""
    return [GrpcTraces()] if tracing.is_on() else []


def http_traces(app: ASGIApp) -> ASGIApp:
    """Returns an application that continues traces: itself while they are off."""
    return HttpTraces(app) if tracing.is_on() else app


class GrpcTraces(grpc.aio.ServerInterceptor):
    """Makes a span of every call of a service of lorauter's."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method).removeprefix("/")
        parent = _carrier(handler_call_details.invocation_metadata or ())
        if handler is None or not method.startswith("lorauter."):
            return handler
        if not parent and method.rpartition("/")[2] in _UNASKED:
            return handler
        return _traced(handler, method, parent)


def _carrier(metadata: Iterable[Any]) -> dict[str, str]:
    return {key: value for key, value in metadata if key in _W3C and isinstance(value, str)}


def _traced(handler: Any, method: str, parent: tracing.Carrier) -> Any:
    inner = inner_of(handler)

    def begun() -> tracing.Span:
        return tracing.span(method, "server", rpc_attributes(method), parent)

    async def unary(request: Any, context: Any) -> Any:
        with begun() as span:
            try:
                return await inner(request, context)
            finally:
                _answered(span, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        with begun() as span:
            try:
                async for response in inner(request, context):
                    yield response
            finally:
                _answered(span, context)

    answer = stream if handler.response_streaming else unary
    return rewrapped(handler, answer, handler.request_deserializer)


def rpc_attributes(method: str) -> tracing.Attributes:
    """Returns the attributes of a call of ``package.Service/Method``, whichever side it is seen from."""
    return {"rpc.system.name": "grpc", "rpc.method": method}


def _answered(span: tracing.Span, context: Any) -> None:
    found = context.code()
    code = next((code for code in grpc.StatusCode if found in (code, code.value[0])), grpc.StatusCode.OK)
    span.set({"rpc.response.status_code": code.name})
    if code is not grpc.StatusCode.OK:
        span.fail(code.name)


class HttpTraces:
    """Makes a span of every request, from its first byte to the answer's last."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parent = {
            name: value.decode("latin-1")
            for key, value in scope["headers"]
            if (name := key.decode("latin-1")) in _W3C
        }
        if not parent and scope["path"] in _UNASKED_PATHS:
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        with tracing.span(method, "server", {"http.request.method": method}, parent) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set({"http.response.status_code": status})
                    if status >= 500:
                        span.fail(str(status))
                await send(message)

            try:
                await self.app(scope, receive, noted)
            finally:
                # known once the request has found its route; the path itself may hold anything
                if route := getattr(scope.get("route"), "path", ""):
                    span.rename(f"{method} {route}")
                    span.set({"http.route": route})
