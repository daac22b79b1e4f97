"""What lorauter's engine and Hugging Face TGI have in common: the routes of TGI's protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lorauter_gateway.adapters import tgi_bodies
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.exchange import Exchange, Pieces, parsed
from lorauter_gateway.adapters.faults import translated
from lorauter_gateway.domain.model import Answer, Sampling
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.ports import BackendCall, Limits

GENERATE = "/generate"
CHAT = "/v1/chat/completions"


class TgiProtocol(ABC):
    """Implements ports.Driver but for whole answers. Raw prompts go to GENERATE, conversations to CHAT."""

    def __init__(self, url: str, connections: Connections) -> None:
        self._exchange = Exchange(url, connections)

    @abstractmethod
    def generate_body(self, call: BackendCall) -> dict[str, Any]:
        """Returns the body for a raw prompt."""

    @abstractmethod
    def chat_body(self, call: BackendCall, stream: bool) -> dict[str, Any]:
        """Returns the body for a conversation."""

    @abstractmethod
    async def generate(self, call: BackendCall) -> Answer:
        """See ports.Driver."""

    async def stream(self, call: BackendCall) -> Pieces:
        """See ports.Driver."""
        if isinstance(call.prompt, str):
            reader = tgi_bodies.GenerateStream()
            return await self._exchange.stream("/generate_stream", self.generate_body(call), reader)
        return await self._exchange.stream(CHAT, self.chat_body(call, stream=True), tgi_bodies.ChatStream())

    async def is_healthy(self) -> bool:
        """See ports.Driver."""
        return await self._exchange.is_healthy()

    def was_cut(self) -> bool:
        """See ports.Driver."""
        return self._exchange.was_cut()

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
        answer, _ = await self._exchange.post(GENERATE, self.generate_body(call))
        with translated():
            return tgi_bodies.read_prefill(parsed(answer))
