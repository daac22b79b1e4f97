"""vLLM 0.33: one adapter a request, loaded at run time.

Source: vLLM's entrypoints/openai and docs/features/lora.md. Loading needs VLLM_ALLOW_RUNTIME_LORA_UPDATING.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from lorauter.errors import Unavailable
from lorauter_gateway.adapters import faults
from lorauter_gateway.adapters import vllm_wire as wire
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.exchange import Exchange, Pieces, parsed
from lorauter_gateway.adapters.faults import Fault, translated
from lorauter_gateway.domain.model import Answer
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.ports import BackendCall, BackendFailed, Limits

T = TypeVar("T")

_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"
_MODELS = "/v1/models"


class VllmDriver:
    """Implements ports.LoadingDriver. Raw prompts go to /v1/completions, conversations to the chat."""

    def __init__(self, url: str, connections: Connections) -> None:
        self._exchange = Exchange(url, connections, wire.refusal)
        self._control = Exchange(url, connections, _load_refusal)
        self._base = ""

    async def generate(self, call: BackendCall) -> Answer:
        """See ports.Driver."""

        async def ask(model: str) -> bytes:
            path, body = _request(call, model, stream=False)
            return (await self._exchange.post(path, body))[0]

        answer = await self._named(call.served_name, call.base_model, ask)
        with translated():
            return wire.read_answer(parsed(answer))

    async def stream(self, call: BackendCall) -> Pieces:
        """See ports.Driver."""

        async def ask(model: str) -> Pieces:
            path, body = _request(call, model, stream=True)
            return await self._exchange.stream(path, body, wire.TextStream())

        return await self._named(call.served_name, call.base_model, ask)

    async def is_healthy(self) -> bool:
        """See ports.Driver."""
        return await self._exchange.is_healthy()

    def was_cut(self) -> bool:
        """See ports.Driver."""
        return self._exchange.was_cut()

    async def limits(self) -> Limits:
        """See ports.Driver."""
        models = await self._exchange.get(_MODELS)
        with translated():
            return wire.limits_of(wire.listed(models))

    async def read(
        self, text: str, adapters: Sequence[WeightedAdapter], served_name: str, base_model: str
    ) -> Sequence[float]:
        """See ports.Driver: prompt_logprobs, which are vLLM's own."""

        async def ask(model: str) -> bytes:
            return (await self._exchange.post(_COMPLETIONS, wire.reading_body(text, model)))[0]

        answer = await self._named(served_name, base_model, ask)
        with translated():
            return wire.read_prompt(parsed(answer))

    async def loaded(self) -> Mapping[str, str]:
        """See ports.LoadingDriver."""
        models = await self._exchange.get(_MODELS)
        with translated():
            return {str(m["id"]): str(m.get("root") or "") for m in wire.listed(models) if m.get("parent")}

    async def load(self, name: str, path: str) -> None:
        """See ports.LoadingDriver."""
        await self._change(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, "already been loaded"
        )

    async def unload(self, name: str) -> None:
        """See ports.LoadingDriver."""
        await self._change("/v1/unload_lora_adapter", {"lora_name": name}, "cannot be found")

    async def _change(self, path: str, body: Mapping[str, object], is_done: str) -> None:
        try:
            await self._control.post(path, body)
        except BackendFailed as failure:
            if not (failure.error.reason == "LOAD_REFUSED" and is_done in failure.error.message):
                raise

    async def _named(self, served_name: str, base_model: str, ask: Callable[[str], Awaitable[T]]) -> T:
        """Asks under the adapter's name, else under the base's, which is looked up again if it changed."""
        if served_name:
            return await ask(served_name)
        name = self._base or await self._base_name(base_model)
        try:
            return await ask(name)
        except BackendFailed as failure:
            if not failure.is_missing:
                raise
        return await ask(await self._base_name(base_model))

    async def _base_name(self, base_model: str) -> str:
        models = await self._exchange.get(_MODELS)
        with translated():
            self._base = wire.base_of(wire.listed(models), base_model)
        return self._base


def _request(call: BackendCall, model: str, stream: bool) -> tuple[str, Mapping[str, object]]:
    if isinstance(call.prompt, str):
        return _COMPLETIONS, wire.completion_body(call, model, stream)
    return _CHAT, wire.chat_body(call, model, stream)


def _load_refusal(status: int, body: bytes, headers: Mapping[str, str]) -> Fault:
    message, kind = faults.error_parts(body)
    if status in (404, 405) and not kind:
        message = "it loads no adapters at run time: start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
    if status in (429, 502, 503):
        return faults.refusal(status, body, headers)
    error = Unavailable("LOAD_REFUSED", f"the backend refused to load or unload: {message or status}")
    return BackendFailed(error, try_elsewhere=True)
