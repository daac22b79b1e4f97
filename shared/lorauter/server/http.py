"""An HTTP application as every service has it: size limit, problem+json, health, metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from lorauter.access import Scope
from lorauter.errors import LorauterError, Unauthenticated
from lorauter.server.access import KEY_HEADER, OPEN_PATHS, TENANT_HEADER, Gate, access_headers, enter_as
from lorauter.server.grpc import known_error

Readiness = Callable[[], Awaitable[str]]
"""Returns an empty text if the service can work, else what it lacks."""

BodyBytes = int | Callable[[str], int]
"""The largest body, for all routes or by path."""

ScopeFor = Callable[[str, str], Scope | None]
"""Returns what a request asks for, by its method and path; None: nobody may make it."""


_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI would look for OpenTelemetry's providers at every request; services are measured by /metrics."""


def problem(
    status: int, reason: str, message: str, metadata: Mapping[str, Any] | None = None, path: str = ""
) -> Response:
    """Returns an RFC 9457 problem; ``path`` is the route that failed, for renderers that differ by it."""
    body = {
        "type": f"urn:lorauter:error:{reason}",
        "title": reason,
        "status": status,
        "detail": message,
        "reason": reason,
        "metadata": metadata or {},
    }
    return JSONResponse(body, status, retry_headers(metadata), "application/problem+json")


def retry_headers(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns Retry-After where the error says ``retry_after_seconds``."""
    seconds = (metadata or {}).get("retry_after_seconds")
    return {"retry-after": str(seconds)} if seconds else {}


class Renderer(Protocol):
    """Writes an error in the dialect of the route at ``path``; ``problem`` is the usual one."""

    def __call__(
        self, status: int, reason: str, message: str, metadata: Mapping[str, Any] | None, path: str
    ) -> Response: ...


def any_good_key(method: str, path: str) -> Scope:
    """Asks for a good key and no more, of applications that look at its scopes themselves."""
    return Scope.ANY


def create_app(
    title: str,
    readiness: Readiness,
    max_body_bytes: BodyBytes,
    render: Renderer = problem,
    gate: Gate | None = None,
    scope_for: ScopeFor = any_good_key,
    **options: Any,
) -> FastAPI:
    """Returns an application with /healthz, /readyz and /metrics.

    Bodies over ``max_body_bytes`` are answered 413 without being read to their end. ``render``
    writes every error. Where there is a ``gate``, it is asked before anything of a body is read, but for
    OPEN_PATHS, and the key must allow what ``scope_for`` says.
    """
    app = FastAPI(title=title, version="1", telemetry=_NO_TELEMETRY, **options)
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes, render=render)
    if gate is not None:
        app.add_middleware(HttpAccess, gate=gate, scope_for=scope_for, render=render)
    errors = _Errors(render)
    app.add_exception_handler(LorauterError, errors.on_known_error)
    app.add_exception_handler(RequestValidationError, errors.on_bad_body)
    app.add_exception_handler(HTTPException, errors.on_http_error)
    app.add_exception_handler(Exception, errors.on_known_error)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> PlainTextResponse:
        lacking = await readiness()
        return PlainTextResponse(lacking or "ok", status_code=503 if lacking else 200)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


class _Errors:
    def __init__(self, render: Renderer) -> None:
        self._render = render

    async def on_known_error(self, request: Request, error: Exception) -> Response:
        path = request.url.path
        known = known_error(error, f"{request.method} {path}")
        return self._render(known.http_status, known.reason, known.message, known.metadata, path)

    async def on_bad_body(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        reason, message, metadata = describe(error.errors())
        return self._render(400, reason, message, metadata, request.url.path)

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = _HTTP_REASONS.get(error.status_code, "HTTP_ERROR")
        message = _UNREADABLE if error.status_code == 400 else str(error.detail)
        return self._render(error.status_code, reason, message, {}, request.url.path)


_UNREADABLE = "the body cannot be read: send JSON in UTF-8, not nested by the thousand, with usual numbers"
"""FastAPI says only that something was wrong when a body broke its parser other than by its grammar."""

_HTTP_REASONS = {
    400: "MALFORMED_JSON",
    404: "NO_SUCH_ROUTE",
    405: "METHOD_NOT_ALLOWED",
    413: "BODY_TOO_LARGE",
}


def describe(problems: Sequence[Any]) -> tuple[str, str, dict[str, str]]:
    """Returns reason, message and metadata for what pydantic found wrong with a body."""
    first: Any = problems[0] if problems else {"loc": (), "msg": "unreadable", "type": ""}
    field = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "json_invalid":
        return "MALFORMED_JSON", f"the body is not JSON: {first['ctx']['error']}", {}
    reason = "MISSING_FIELD" if first["type"] == "missing" else "INVALID_FIELD"
    return reason, f"{field or 'body'}: {first['msg']}", {"field": field}


_ACCESS_NAMES = frozenset({KEY_HEADER.encode(), TENANT_HEADER.encode()})


class HttpAccess:
    """ASGI middleware: lets in callers whose key allows what ``scope_for`` says."""

    def __init__(
        self, app: ASGIApp, gate: Gate, scope_for: ScopeFor = any_good_key, render: Renderer = problem
    ) -> None:
        self.app = app
        self.gate = gate
        self.scope_for = scope_for
        self.render = render

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope):
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        pairs = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name in _ACCESS_NAMES
        ]
        try:
            await enter_as(self.gate, access_headers(pairs), self.scope_for(method, path), f"{method} {path}")
        except LorauterError as error:
            refusal = self.render(error.http_status, error.reason, error.message, error.metadata, path)
            if isinstance(error, Unauthenticated):
                refusal.headers["www-authenticate"] = "Bearer"
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _is_open(scope: AsgiScope) -> bool:
    return scope["path"] in OPEN_PATHS and scope["method"] in ("GET", "HEAD")


class BodyLimit:
    """Answers 413 as soon as a body is known to exceed the limit, and counts what is streamed."""

    def __init__(self, app: ASGIApp, max_body_bytes: BodyBytes, render: Renderer = problem) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.render = render

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = (
            self.max_body_bytes
            if isinstance(self.max_body_bytes, int)
            else self.max_body_bytes(scope["path"])
        )
        declared = _declared_bytes(scope)
        if declared > limit:
            metadata = {"limit_bytes": str(limit)}
            refusal = self.render(413, "BODY_TOO_LARGE", _too_large(limit), metadata, scope["path"])
            await refusal(scope, receive, send)
            return
        if declared >= 0:
            # the server lets through no more than what is declared
            await self.app(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # FastAPI turns any other error from reading the body into a 400
                raise HTTPException(413, _too_large(limit))
            return message

        await self.app(scope, counted, send)


def _declared_bytes(scope: AsgiScope) -> int:
    """Returns how long the body is said to be, -1 where its end is told only when it comes."""
    headers = dict(scope["headers"])
    declared = headers.get(b"content-length", b"")
    return int(declared) if declared.isdigit() and b"transfer-encoding" not in headers else -1


def _too_large(limit: int) -> str:
    return f"the body is over {limit} bytes: send less, or in pieces"
