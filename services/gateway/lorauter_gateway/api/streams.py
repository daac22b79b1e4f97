"""Keeps answers tied to their callers: a caller that goes away stops its generation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lorauter.errors import LorauterError
from lorauter.server.grpc import known_error
from lorauter_gateway.service import OpenStream

T = TypeVar("T")

_LAST_EVENT_SECONDS = 1.0
"""How long the event that ends a stream in time may take to be sent."""


class CallerGone(Exception):
    """The caller closed the connection; nobody reads an answer any more."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns what ``work`` returns; cancels it and raises CallerGone when the caller disconnects."""
    task = asyncio.current_task()
    assert task is not None
    gone = asyncio.ensure_future(_cancelled_when_gone(request, task))
    try:
        return await work
    except asyncio.CancelledError:
        if not gone.done():
            raise
        task.uncancel()
        raise CallerGone from None
    finally:
        gone.cancel()


async def _cancelled_when_gone(request: Request, task: asyncio.Task[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def event(data: object) -> str:
    """Returns a server-sent event with ``data`` as JSON, in ASCII: some clients split lines at U+2028."""
    return f"data: {_json(data)}\n\n"


def tgi_event(data: object) -> str:
    """Returns the event as TGI writes it: without a space."""
    return f"data:{_json(data)}\n\n"


def _json(data: object) -> str:
    return json.dumps(data, separators=(",", ":"))


class EventStream(StreamingResponse):
    """Sends events made from an open stream, and closes the stream whatever becomes of the response."""

    def __init__(
        self,
        stream: OpenStream,
        events: AsyncIterator[str],
        on_error: Callable[[LorauterError], str],
        headers: dict[str, str],
    ) -> None:
        headers = {**headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_guarded(events, on_error), headers=headers, media_type="text/event-stream")
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the response as long as the caller is there, and reads, and until the time is up."""
        try:
            with suppress(CallerGone, TimeoutError):
                # sending waits for a caller that does not read, and no piece is asked for meanwhile
                async with asyncio.timeout_at(self._stream.deadline + _LAST_EVENT_SECONDS):
                    await while_connected(Request(scope, receive), self.stream_response(send))
        finally:
            await self._stream.aclose()


async def _guarded(
    events: AsyncIterator[str], on_error: Callable[[LorauterError], str]
) -> AsyncIterator[str]:
    try:
        async for line in events:
            yield line
    except Exception as error:
        yield on_error(known_error(error, "stream"))
