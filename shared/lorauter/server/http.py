"""An HTTP application as every service has it: size limit, problem+json, health, metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorauter.errors import LorauterError, PayloadTooLarge
from lorauter.server.grpc import known_error

Readiness = Callable[[], Awaitable[str]]
"""Returns an empty text if the service can work, else what it lacks."""


def create_app(title: str, readiness: Readiness, max_body_bytes: int, **options: Any) -> FastAPI:
    """Returns an application with /healthz, /readyz and /metrics.

    Bodies over ``max_body_bytes`` are answered 413 without being read to their end.
    """
    app = FastAPI(title=title, version="1", **options)
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes)
    app.add_exception_handler(LorauterError, _on_known_error)
    app.add_exception_handler(RequestValidationError, _on_bad_body)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_known_error)

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


def problem(status: int, reason: str, message: str, metadata: dict[str, Any] | None = None) -> JSONResponse:
    """Returns an RFC 9457 problem."""
    body = {
        "type": f"urn:lorauter:error:{reason}",
        "title": reason,
        "status": status,
        "detail": message,
        "reason": reason,
        "metadata": metadata or {},
    }
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


async def _on_known_error(request: Request, error: Exception) -> JSONResponse:
    known = known_error(error, f"{request.method} {request.url.path}")
    return problem(known.http_status, known.reason, known.message, dict(known.metadata))


async def _on_bad_body(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    first: Any = problems[0] if problems else {"loc": (), "msg": "unreadable", "type": ""}
    field = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "json_invalid":
        return problem(400, "MALFORMED_JSON", f"the body is not JSON: {first['ctx']['error']}")
    reason = "MISSING_FIELD" if first["type"] == "missing" else "INVALID_FIELD"
    return problem(400, reason, f"{field or 'body'}: {first['msg']}", {"field": field})


async def _on_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reason = {404: "NO_SUCH_ROUTE", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "HTTP_ERROR")
    return problem(error.status_code, reason, str(error.detail))


class BodyLimit:
    """Answers 413 as soon as a body is known to exceed the limit, and counts what is streamed."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body_bytes:
            await self._too_large()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise PayloadTooLarge("BODY_TOO_LARGE", self._message(), limit_bytes=str(self.max_body_bytes))
            return message

        await self.app(scope, counted, send)

    def _message(self) -> str:
        return f"the body is over {self.max_body_bytes} bytes: send less, or in pieces"

    def _too_large(self) -> JSONResponse:
        return problem(413, "BODY_TOO_LARGE", self._message(), {"limit_bytes": str(self.max_body_bytes)})
