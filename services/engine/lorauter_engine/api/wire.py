"""Between bytes and values: strict bodies, typed errors, event streams, callers that go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from lorauter.errors import Exhausted, InvalidArgument, LorauterError, UnprocessableRequest
from lorauter.server.grpc import known_error
from lorauter_engine import metrics

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")

RETRY_SECONDS = "1"
"""Retry-After of a refusal for overload."""

_BY_REASON = {
    "GENERATION_FAILED": (424, "generation"),
    "OUTPUT_NOT_FINITE": (424, "generation"),
    "TEMPLATE_ERROR": (422, "template_error"),
    "ENGINE_STOPPING": (503, "unhealthy"),
}


class ClientGone(Exception):
    """The caller closed the connection: nobody reads an answer."""


class JsonResponse(Response):
    """JSON as orjson writes it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the bytes of ``content``."""
        return orjson.dumps(content)


def described(error: LorauterError) -> tuple[int, dict[str, str]]:
    """Returns status and body in TGI's form, with our reason added, and the field that is at fault."""
    if error.reason in _BY_REASON:
        status, kind = _BY_REASON[error.reason]
    elif isinstance(error, Exhausted):
        status, kind = 429, "overloaded"
    elif isinstance(error, InvalidArgument):
        status, kind = error.http_status, "validation"
    else:
        status, kind = error.http_status, "internal" if error.http_status == 500 else "validation"
    field = {"field": error.metadata["field"]} if "field" in error.metadata else {}
    return status, {"error": error.message, "error_type": kind, "reason": error.reason, **field}


def render(status: int, reason: str, message: str, metadata: Mapping[str, Any] | None, path: str) -> Response:
    """Implements lorauter.server.http.Renderer for what no route sees: sizes, methods, unknown routes."""
    metrics.REQUESTS.labels("other", "validation").inc()
    body = {"error": message, "error_type": "validation", "reason": reason}
    return JsonResponse(body, status_code=status)


async def on_error(request: Request, error: Exception) -> Response:
    """Answers an error in TGI's form; what is not ours is logged and gets an id."""
    if isinstance(error, ClientGone):
        metrics.REQUESTS.labels(request.url.path, "cancelled").inc()
        return Response(status_code=499)
    known = known_error(error, f"{request.method} {request.url.path}")
    status, body = described(known)
    metrics.REQUESTS.labels(request.url.path, body["error_type"]).inc()
    headers = {"retry-after": RETRY_SECONDS} if status == 429 else None
    return JsonResponse(body, status_code=status, headers=headers)


async def read(request: Request, model: type[Model]) -> Model:
    """Returns the body; raises InvalidArgument (MALFORMED_JSON) or UnprocessableRequest (a field)."""
    data = await request.body()
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        raise InvalidArgument("MALFORMED_JSON", f"the body is not JSON: {first['msg']}")
    field = ".".join(str(part) for part in first["loc"])
    reason = "MISSING_FIELD" if first["type"] == "missing" else "INVALID_FIELD"
    raise UnprocessableRequest(reason, f"{field or 'body'}: {first['msg']}", field=field)


async def watched(request: Request, work: Awaitable[Value]) -> Value:
    """Awaits ``work`` as long as the caller stays; raises ClientGone and cancels it otherwise."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _ended(task, gone)


class EventStream(Response):
    """Server-sent events from a generator, which is closed as soon as the caller goes away."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        self.status_code = 200
        self.body_iterator = events
        self.background = None
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _ended(sending, gone)
            await self.body_iterator.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self.body_iterator:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def guarded(
    events: AsyncGenerator[bytes, None], last: Callable[[LorauterError], bytes]
) -> AsyncGenerator[bytes, None]:
    """Passes events on; an error in between becomes the last one, since the status is sent already."""
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield event
    except LorauterError as error:
        yield last(error)
    except Exception as error:
        yield last(known_error(error, "stream"))


def event(body: object) -> bytes:
    """Returns one event as TGI writes it."""
    return b"data:" + orjson.dumps(body) + b"\n\n"


def error_event(error: LorauterError) -> bytes:
    """Returns TGI's error event."""
    return event(described(error)[1])


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
