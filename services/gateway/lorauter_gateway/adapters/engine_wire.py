"""The engine's bodies: TGI's with ``adapters``."""

from __future__ import annotations

from collections.abc import Sequence

from lorauter_gateway.adapters import tgi_bodies
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.ports import BackendCall


def generate_body(call: BackendCall) -> dict[str, object]:
    """Returns the body of /generate and /generate_stream; unknown parameters are the engine's to refuse."""
    parameters = {**call.sampling.extra, **tgi_bodies.parameters(call.sampling)}
    return {"inputs": call.prompt, "parameters": parameters | {"adapters": weighted(call.adapters)}}


def chat_body(call: BackendCall, stream: bool) -> dict[str, object]:
    """Returns the body of /v1/chat/completions."""
    sampling = call.sampling
    own = {"top_k": sampling.top_k, "repetition_penalty": sampling.repetition_penalty}
    return {
        **tgi_bodies.chat_body(call, tgi_bodies.BASE_MODEL, stream),
        **{name: value for name, value in own.items() if value is not None},
        "adapters": weighted(call.adapters),
    }


def weighted(adapters: Sequence[WeightedAdapter]) -> list[dict[str, object]]:
    """Returns the set as the engine takes it."""
    return [{"id": adapter.digest, "weight": adapter.weight} for adapter in adapters]
