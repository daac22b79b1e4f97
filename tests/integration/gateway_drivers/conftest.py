"""Drivers of each kind against servers that play the bytes of the real ones' protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.kinds import KINDS
from lorauter_gateway.domain.model import Message, sampling
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.ports import BackendCall
from tests.integration.gateway_drivers.peer import Peer, Reply, events, whole

NAME = "c0ffee" + "0" * 58
BASE = "org/base"


def raw(served_name: str = NAME, text: str = "Say hi", **settings: Any) -> BackendCall:
    """A raw prompt for one adapter."""
    adapters = [WeightedAdapter("polite", 1, 1.0, f"sha256:{NAME}")] if served_name else []
    return BackendCall(text, sampling(**settings), adapters, served_name, BASE)


def chat(served_name: str = NAME, **settings: Any) -> BackendCall:
    """A conversation for one adapter."""
    call = raw(served_name, **settings)
    turns = (Message("system", "Be kind."), Message("user", "Hi"))
    return BackendCall(turns, call.sampling, call.adapters, served_name, BASE)


@dataclass(frozen=True)
class Protocol:
    """What a kind's server answers to a raw prompt, and what it calls its paths."""

    kind: str
    path: str
    stream_path: str
    answer: Reply
    tokens: tuple[object, ...]
    ending: tuple[object, ...]
    error: object
    too_long: tuple[int, object]


_DETAILS = {"finish_reason": "eos_token", "generated_tokens": 3, "seed": None}


def tgi_token(index: int, text: str, ends: bool = False) -> dict[str, Any]:
    """An event of TGI's /generate_stream."""
    token = {"id": 10 + index, "text": text, "logprob": -0.25, "special": ends}
    found = "Hi you" if ends else None
    return {
        "index": index,
        "token": token,
        "generated_text": found,
        "details": {**_DETAILS, "input_length": 4} if ends else None,
    }


def tgi_answer(**details: Any) -> dict[str, Any]:
    """TGI's answer to /generate."""
    tokens = [{"id": 11, "text": "Hi", "logprob": -0.25, "special": False}]
    found = {**_DETAILS, "prefill": [], "tokens": tokens, **details}
    return {"generated_text": "Hi you", "details": found}


def vllm_chunk(text: str, reason: str | None = None, stop: object = None) -> dict[str, Any]:
    """A chunk of vLLM's /v1/completions."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": stop}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": NAME, "choices": [choice]}


VLLM_USAGE = {"prompt_tokens": 4, "total_tokens": 7, "completion_tokens": 3}
VLLM_LAST = {**vllm_chunk(""), "choices": [], "usage": VLLM_USAGE}
_TGI: dict[str, Any] = {
    "path": "/generate",
    "stream_path": "/generate_stream",
    "answer": whole(tgi_answer(), x_prompt_tokens="4"),
    "tokens": (tgi_token(1, "Hi"), tgi_token(2, " you")),
    "ending": (tgi_token(3, "</s>", ends=True),),
    "error": {"error": "CUDA out of memory", "error_type": "generation"},
    "too_long": (422, {"error": "`inputs` tokens must be <= 9. Given: 12", "error_type": "validation"}),
}
PROTOCOLS = {
    "engine": Protocol("engine", **_TGI),
    "tgi": Protocol("tgi", **_TGI),
    "vllm": Protocol(
        "vllm",
        "/v1/completions",
        "/v1/completions",
        whole({**vllm_chunk("Hi you", "stop"), "usage": VLLM_USAGE}),
        (vllm_chunk("Hi"), vllm_chunk(" you")),
        (vllm_chunk("", "stop"), VLLM_LAST, b"[DONE]"),
        {"error": {"message": "engine died", "type": "InternalServerError", "param": None, "code": 500}},
        (
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 9 tokens. However, you requested 12",
                    "type": "BadRequestError",
                    "param": "input_tokens",
                    "code": 400,
                }
            },
        ),
    ),
}


@pytest.fixture(params=sorted(PROTOCOLS))
def protocol(request: pytest.FixtureRequest) -> Protocol:
    """Each kind's protocol in turn."""
    return PROTOCOLS[request.param]


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with Peer() as running:
        yield running


@pytest.fixture
async def connections() -> AsyncIterator[Connections]:
    async with Connections(request_timeout_seconds=30, connect_timeout_seconds=5) as opened:
        yield opened


@pytest.fixture
def driver(connections: Connections, peer: Peer) -> Callable[[str], Any]:
    """Makes the driver of a kind for the peer."""
    return lambda kind: KINDS[kind].make(peer.url, connections)


__all__ = [
    "BASE",
    "NAME",
    "Protocol",
    "chat",
    "events",
    "raw",
    "tgi_answer",
    "tgi_token",
    "vllm_chunk",
    "whole",
]
