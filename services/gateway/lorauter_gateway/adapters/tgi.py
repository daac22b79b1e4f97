"""Hugging Face's Text Generation Inference 3.3: adapters listed at its start, one a request.

Whole answers go through huggingface_hub's client, which owns TGI's types; streams are read here, for TGI
reports errors inside a 200 stream and a stream's bytes should be parsed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.inference._common import RequestParameters

from lorauter.errors import Internal
from lorauter_gateway.adapters import tgi_bodies
from lorauter_gateway.adapters import tgi_wire as wire
from lorauter_gateway.adapters.exchange import Exchange, parsed
from lorauter_gateway.adapters.faults import translated
from lorauter_gateway.adapters.tgi_protocol import CHAT, GENERATE, TgiProtocol
from lorauter_gateway.domain.model import Answer
from lorauter_gateway.ports import BackendCall, BackendFailed


class TgiDriver(TgiProtocol):
    """Implements ports.Driver.

    TGI answers an adapter that it lacks with the base and says nothing: who calls knows what it holds.
    """

    def generate_body(self, call: BackendCall) -> dict[str, Any]:
        """See TgiProtocol."""
        return wire.generate_body(call)

    def chat_body(self, call: BackendCall, stream: bool) -> dict[str, Any]:
        """See TgiProtocol."""
        return wire.chat_body(call, stream)

    async def generate(self, call: BackendCall) -> Answer:
        """See ports.Driver."""
        if isinstance(call.prompt, str):
            return await self._text(self.generate_body(call))
        body = self.chat_body(call, stream=False)
        with translated():
            chat = await _Client(self._exchange, CHAT, body).chat_completion(**body)
            return tgi_bodies.read_chat_answer(chat)

    async def _text(self, body: Mapping[str, Any]) -> Answer:
        client = _Client(self._exchange, GENERATE, body)
        with translated():
            found = await client.text_generation(
                body["inputs"], model=self._exchange.url + GENERATE, **body["parameters"]
            )
            return tgi_bodies.read_answer(_without_absent(found), client.answer_headers)


def _without_absent(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the answer without what the library adds as None, a seed aside, which TGI itself has so."""
    details = {name: part for name, part in found["details"].items() if part is not None or name == "seed"}
    return {**found, "details": details}


class _Client(AsyncInferenceClient):
    """huggingface_hub's client for one request, sent over the gateway's own connections.

    The library would answer a 400 that names ``model_kwargs`` by asking again without them, the adapter
    included, and remember it for the process: TGI would answer from the base. Here no status but 200 reaches
    the library, and what it wants to send must be what was asked, or nothing is sent. Nor does it send a
    Hugging Face token of the process's owner.
    """

    def __init__(self, exchange: Exchange, path: str, body: Mapping[str, Any]) -> None:
        super().__init__(model=exchange.url, api_key="unused")
        self._exchange = exchange
        self._path = path
        self._body = body
        self.answer_headers: Mapping[str, str] = {}

    async def _inner_post(  # type: ignore[override]  # streams are not asked for
        self, request_parameters: RequestParameters, *, stream: bool = False
    ) -> bytes:
        url = self._exchange.url + self._path
        if request_parameters.url != url or request_parameters.json != self._body:
            error = Internal("REQUEST_ALTERED", "huggingface_hub's client would send another request to TGI")
            raise BackendFailed(error)
        answer, self.answer_headers = await self._exchange.post(self._path, self._body)
        if b"NaN" in answer or b"Infinity" in answer:
            parsed(answer)  # refuses them as numbers, which the library would pass on
        return answer
