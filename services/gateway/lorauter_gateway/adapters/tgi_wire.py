"""Text Generation Inference's bodies: ``adapter_id`` in /generate, ``model`` in chats."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lorauter.errors import InvalidArgument
from lorauter_gateway.adapters import tgi_bodies
from lorauter_gateway.adapters.faults import unsupported
from lorauter_gateway.domain.model import Sampling
from lorauter_gateway.ports import BackendCall

_PASSED_ON = frozenset(
    {
        "best_of",
        "decoder_input_details",
        "frequency_penalty",
        "grammar",
        "return_full_text",
        "top_n_tokens",
        "truncate",
        "typical_p",
        "watermark",
    }
)


def generate_body(call: BackendCall) -> dict[str, Any]:
    """Returns the body of /generate and /generate_stream.

    Raises InvalidArgument (UNSUPPORTED_FIELD) for parameters that TGI would ignore.
    """
    parameters = {**_extra(call.sampling), **tgi_bodies.parameters(call.sampling)}
    if call.served_name:
        parameters["adapter_id"] = call.served_name
    return {"inputs": call.prompt, "parameters": parameters}


def chat_body(call: BackendCall, stream: bool) -> dict[str, Any]:
    """Returns the body of /v1/chat/completions; raises InvalidArgument (UNSUPPORTED_FIELD) as above."""
    sampling = call.sampling
    ignored = {"top_k": sampling.top_k, "repetition_penalty": sampling.repetition_penalty, **sampling.extra}
    for name, value in ignored.items():
        if value is not None:
            raise unsupported(name, "TGI's chat")
    return tgi_bodies.chat_body(call, call.served_name or tgi_bodies.BASE_MODEL, stream)


def _extra(sampling: Sampling) -> dict[str, object]:
    extra: dict[str, object] = {}
    for name, value in sampling.extra.items():
        if name not in _PASSED_ON:
            raise unsupported(name, "TGI")
        extra[name] = _grammar(value) if name == "grammar" else _plain(name, value)
    return extra


def _plain(name: str, value: object) -> object:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    field = f"parameters.{name}"
    raise InvalidArgument("INVALID_FIELD", f"{field}: give a number or true or false", field=field)


def _grammar(told: object) -> dict[str, object]:
    """Returns a grammar whose schema is a text, which TGI takes too: nothing on the way changes a text."""
    kind, value = grammar(told)
    return {"type": kind, "value": value if isinstance(value, str) else json.dumps(value)}


def grammar(told: object) -> tuple[str, object]:
    """Returns ``json`` and a schema, or ``regex`` and an expression; raises InvalidArgument."""
    if isinstance(told, Mapping):
        kind, value = told.get("type"), told.get("value")
        if kind == "json_schema" and isinstance(value, Mapping):
            kind, value = "json", value.get("schema")
        if kind in ("json", "json_object") and isinstance(value, Mapping | str):
            return "json", value
        if kind == "regex" and isinstance(value, str):
            return "regex", value
    field = "parameters.grammar"
    message = f'{field}: give {{"type": "json", "value": <schema>}} or {{"type": "regex", "value": <text>}}'
    raise InvalidArgument("INVALID_FIELD", message, field=field)
