"""lorauter's own engine: TGI's protocol, with a weighted adapter set per request."""

from __future__ import annotations

from collections.abc import Sequence

from lorauter_gateway.adapters import engine_wire as wire
from lorauter_gateway.adapters import tgi_bodies
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.exchange import Exchange, Pieces, parsed
from lorauter_gateway.adapters.faults import translated
from lorauter_gateway.domain.model import Answer, Sampling
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.ports import BackendCall, Limits

_CHAT = "/v1/chat/completions"


class EngineDriver:
    """Implements ports.Driver. Raw prompts go to /generate, conversations to /v1/chat/completions."""

    def __init__(self, url: str, connections: Connections) -> None:
        self._exchange = Exchange(url, connections)

    async def generate(self, call: BackendCall) -> Answer:
        """See ports.Driver."""
        if isinstance(call.prompt, str):
            body, headers = await self._exchange.post("/generate", wire.generate_body(call))
            with translated():
                return tgi_bodies.read_answer(parsed(body), headers)
        body, _ = await self._exchange.post(_CHAT, wire.chat_body(call, stream=False))
        with translated():
            return tgi_bodies.read_chat_answer(parsed(body))

    async def stream(self, call: BackendCall) -> Pieces:
        """See ports.Driver."""
        if isinstance(call.prompt, str):
            reader = tgi_bodies.GenerateStream()
            return await self._exchange.stream("/generate_stream", wire.generate_body(call), reader)
        return await self._exchange.stream(_CHAT, wire.chat_body(call, stream=True), tgi_bodies.ChatStream())

    async def is_healthy(self) -> bool:
        """See ports.Driver."""
        return await self._exchange.is_healthy()

    async def limits(self) -> Limits:
        """See ports.Driver."""
        info = await self._exchange.get("/info")
        with translated():
            return tgi_bodies.read_limits(info)

    async def read(
        self, text: str, adapters: Sequence[WeightedAdapter], served_name: str, base_model: str
    ) -> Sequence[float]:
        """See ports.Driver: the prefill's log-probabilities."""
        sampling = Sampling(max_new_tokens=1, extra={"decoder_input_details": True})
        call = BackendCall(text, sampling, adapters, served_name, base_model)
        body, _ = await self._exchange.post("/generate", wire.generate_body(call))
        with translated():
            return tgi_bodies.read_prefill(parsed(body))
