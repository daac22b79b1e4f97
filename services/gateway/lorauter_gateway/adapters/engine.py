"""lorauter's own engine: TGI's protocol, with a weighted adapter set per request."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from lorauter_gateway.adapters import engine_wire as wire
from lorauter_gateway.adapters.faults import event_fault, refusal, translated
from lorauter_gateway.adapters.sse import EventReader
from lorauter_gateway.domain.model import Answer, Piece
from lorauter_gateway.domain.plan import Capabilities
from lorauter_gateway.ports import BackendCall, BackendFailed, Limits

_PROBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class EngineBackend:
    """Implements ports.Backend. Raw prompts go to /generate, conversations to /v1/chat/completions."""

    url: str
    http: httpx.AsyncClient

    @property
    def capabilities(self) -> Capabilities:
        """See ports.Backend: any weighted set of stored adapters."""
        return Capabilities(weighted_sets=True)

    async def generate(self, call: BackendCall) -> Answer:
        """See ports.Backend."""
        if isinstance(call.prompt, str):
            async with self._asked("/generate", wire.generate_body(call)) as response:
                return wire.read_answer(json.loads(await response.aread()), response.headers)
        async with self._asked("/v1/chat/completions", wire.chat_body(call, stream=False)) as response:
            return wire.read_chat_answer(json.loads(await response.aread()))

    async def stream(self, call: BackendCall) -> Primed:
        """See ports.Backend."""
        pieces = self._pieces(call) if isinstance(call.prompt, str) else self._chat_pieces(call)
        try:
            return Primed(await anext(pieces), pieces)
        except StopAsyncIteration:
            raise wire.unfinished() from None
        except BaseException:
            await pieces.aclose()
            raise

    async def is_healthy(self) -> bool:
        """See ports.Backend."""
        try:
            response = await self.http.get(self._at("/health"), timeout=_PROBE_SECONDS)
        except httpx.HTTPError:
            return False
        return response.is_success

    async def limits(self) -> Limits:
        """See ports.Backend."""
        async with translated():
            info = (await self.http.get(self._at("/info"), timeout=_PROBE_SECONDS)).raise_for_status().json()
            names = ("max_input_tokens", "max_total_tokens", "max_best_of")
            return Limits(*(int(info.get(name) or 0) for name in names))

    async def _pieces(self, call: BackendCall) -> AsyncGenerator[Piece, None]:
        body = wire.generate_body(call)
        async with self._asked("/generate_stream", body) as response, aclosing(_events(response)) as events:
            async for event in events:
                piece = wire.read_piece(event)
                yield piece
                if piece.finish is not None:
                    return
        raise wire.unfinished()

    async def _chat_pieces(self, call: BackendCall) -> AsyncGenerator[Piece, None]:
        chat = wire.ChatStream()
        path, body = "/v1/chat/completions", wire.chat_body(call, stream=True)
        async with self._asked(path, body) as response, aclosing(_events(response)) as events:
            async for event in events:
                if piece := chat.read(event):
                    yield piece
        yield chat.finished()

    @asynccontextmanager
    async def _asked(self, path: str, body: Mapping[str, object]) -> AsyncIterator[httpx.Response]:
        async with translated(), self.http.stream("POST", self._at(path), json=body) as response:
            if response.status_code >= 400:
                raise refusal(response.status_code, await response.aread(), response.headers)
            yield response

    def _at(self, path: str) -> str:
        return self.url.rstrip("/") + path


class Primed:
    """Implements ports.PieceStream: a running generator whose first piece is there already."""

    def __init__(self, first: Piece, rest: AsyncGenerator[Piece, None]) -> None:
        self._first: Piece | None = first
        self._rest = rest

    def __aiter__(self) -> Primed:
        return self

    async def __anext__(self) -> Piece:
        """Returns the next piece; what breaks now is no longer tried elsewhere."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await anext(self._rest)
        except BackendFailed as failure:
            raise wire.broken(failure) from None

    async def aclose(self) -> None:
        """Closes the connection, which stops the generation."""
        await self._rest.aclose()


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    reader = EventReader()
    async for chunk in response.aiter_bytes():
        for data in reader.feed(chunk):
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if event.get("error") is not None:
                raise event_fault(event)
            yield event
