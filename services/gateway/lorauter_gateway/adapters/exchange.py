"""Requests to one replica: bounded answers, typed failures, streams that can be stopped."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp

from lorauter import tracing
from lorauter.errors import LorauterError
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.faults import Fault, broken, event_fault, refusal, translated
from lorauter_gateway.adapters.sse import EventReader
from lorauter_gateway.domain.model import Piece
from lorauter_gateway.ports import BackendFailed

PROBE_SECONDS = 1.0
"""A replica that takes longer to say how it is does not work."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
_DRAIN_SECONDS = 0.05

Refuse = Callable[[int, bytes, Mapping[str, str]], Fault]


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constant)


def parsed(body: bytes) -> Any:
    """Returns the JSON value in ``body``; raises ValueError, for NaN and infinities too."""
    return _JSON.decode(body.decode())


class Exchange:
    """Speaks HTTP with the replica at ``url``; ``refuse`` makes the error of a status other than 200."""

    def __init__(self, url: str, connections: Connections, refuse: Refuse = refusal) -> None:
        self.url = url.rstrip("/")
        self._connections = connections
        self._refuse = refuse
        self._tether = connections.tether(self.url)

    async def post(self, path: str, body: Mapping[str, object]) -> tuple[bytes, Mapping[str, str]]:
        """Returns body and headers of an answer; raises BackendFailed or LorauterError."""
        async with self._asked("POST", path, body) as response:
            return await _bounded(response, MAX_ANSWER_BYTES), response.headers

    async def stream(self, path: str, body: Mapping[str, object], reader: PieceReader) -> Pieces:
        """Returns the pieces once the first is there; raises as post does."""
        with translated():
            response = await self._send("POST", path, body)
            try:
                await self._check(response)
                pieces = Pieces(response, reader)
                await pieces.prime()
            except BaseException:
                response.close()
                raise
        return pieces

    async def get(self, path: str, timeout_seconds: float = PROBE_SECONDS) -> Any:
        """Returns the JSON value at ``path``; raises as post does."""
        with translated():
            async with asyncio.timeout(timeout_seconds), self._asked("GET", path, None) as response:
                return parsed(await _bounded(response, MAX_ANSWER_BYTES))

    async def is_healthy(self) -> bool:
        """Whether /health answers 200 in time. Never raises."""
        await self._tether.hold(PROBE_SECONDS)
        try:
            async with asyncio.timeout(PROBE_SECONDS), self._asked("GET", "/health", None):
                return True
        except Exception:
            return False

    def was_cut(self) -> bool:
        """Whether the server's process ended since the last call, as far as is_healthy() can have seen it."""
        return self._tether.was_cut()

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        with translated():
            response = await self._send(method, path, body)
            try:
                await self._check(response)
                yield response
            except BaseException:
                response.close()
                raise
            response.release()

    async def _send(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> aiohttp.ClientResponse:
        # a redirect would send prompts where nobody registered a backend
        return await self._connections.session.request(
            method,
            self.url + path,
            json=body,
            headers=tracing.carrier(),
            allow_redirects=False,
            ssl=self._connections.ssl_for(self.url),
        )

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise await self._refused(response)
        packing = response.headers.get("content-encoding", "identity")
        if packing != "identity":
            raise ValueError(f"an answer packed as {packing[:20]!r}, which was not asked for")

    async def _refused(self, response: aiohttp.ClientResponse) -> Fault:
        body = bytearray()
        while len(body) < MAX_ERROR_BYTES and (part := await response.content.readany()):
            body += part
        response.release()
        return self._refuse(response.status, bytes(body[:MAX_ERROR_BYTES]), response.headers)


class PieceReader(Protocol):
    """Reads the events of a stream in turn."""

    def read(self, event: Mapping[str, Any]) -> Piece | None:
        """Returns the piece of an event, None where it holds none."""
        ...

    def finished(self) -> Piece:
        """Returns the last piece where the stream's end makes it; raises BackendFailed if it is too early."""
        ...


class Pieces:
    """Implements ports.PieceStream on a response; prime() before all else."""

    def __init__(self, response: aiohttp.ClientResponse, reader: PieceReader) -> None:
        self._response = response
        self._reader = reader
        self._events = EventReader()
        self._ready: deque[Piece] = deque()
        self._bytes = 0
        self._failure: Fault | None = None
        self._is_over = False

    async def prime(self) -> None:
        """Waits for the first piece; raises BackendFailed, or the LorauterError of a refused request."""
        await self._fill()
        if self._failure is not None and not self._ready:
            raise self._failure

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> Piece:
        """Returns the next piece; what breaks now is no longer tried elsewhere."""
        if not self._ready and not self._is_over and self._failure is None:
            await self._fill()
        if self._ready:
            return self._ready.popleft()
        if self._failure is not None:
            await self.aclose()
            raise broken(self._failure) if isinstance(self._failure, BackendFailed) else self._failure
        await self._drain()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Closes the connection if the answer is not complete, which stops the generation."""
        self._is_over = True
        self._ready.clear()
        self._response.close()

    async def _fill(self) -> None:
        """Reads until there is a piece or a failure."""
        try:
            with translated():
                while not self._ready:
                    self._take(await self._response.content.readany())
        except (BackendFailed, LorauterError) as fault:
            self._failure = fault

    def _take(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._bytes > MAX_ANSWER_BYTES:
            raise ValueError(f"a stream of over {MAX_ANSWER_BYTES} bytes")
        for data in self._events.feed(chunk):
            if data == b"[DONE]":
                self._end(self._reader.finished())
                return
            event = parsed(data)
            if event.get("error") is not None:
                raise event_fault(event)
            piece = self._reader.read(event)
            if piece is not None and piece.finish is not None:
                self._end(piece)
                return
            if piece is not None:
                self._ready.append(piece)
        if not chunk:
            self._end(self._reader.finished())

    def _end(self, last: Piece) -> None:
        self._ready.append(last)
        self._is_over = True

    async def _drain(self) -> None:
        """Reads the response's end, after which the connection is used again."""
        content = self._response.content
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._response.closed and not content.at_eof():
                    await content.readany()
        except (aiohttp.ClientError, TimeoutError):
            self._response.close()


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    parts = bytearray()
    while part := await response.content.readany():
        parts += part
        if len(parts) > most:
            raise ValueError(f"an answer of over {most} bytes")
    return bytes(parts)
