"""lorauter's own engine: TGI's protocol, with a weighted adapter set per request."""

from __future__ import annotations

from typing import Any

from lorauter_gateway.adapters import engine_wire as wire
from lorauter_gateway.adapters import tgi_bodies
from lorauter_gateway.adapters.exchange import parsed
from lorauter_gateway.adapters.faults import translated
from lorauter_gateway.adapters.tgi_protocol import CHAT, GENERATE, TgiProtocol
from lorauter_gateway.domain.model import Answer
from lorauter_gateway.ports import BackendCall


class EngineDriver(TgiProtocol):
    """Implements ports.Driver."""

    def generate_body(self, call: BackendCall) -> dict[str, Any]:
        """See TgiProtocol."""
        return wire.generate_body(call)

    def chat_body(self, call: BackendCall, stream: bool) -> dict[str, Any]:
        """See TgiProtocol."""
        return wire.chat_body(call, stream)

    async def generate(self, call: BackendCall) -> Answer:
        """See ports.Driver."""
        if isinstance(call.prompt, str):
            body, headers = await self._exchange.post(GENERATE, self.generate_body(call))
            with translated():
                return tgi_bodies.read_answer(parsed(body), headers)
        body, _ = await self._exchange.post(CHAT, self.chat_body(call, stream=False))
        with translated():
            return tgi_bodies.read_chat_answer(parsed(body))
