"""vLLM's OpenAI protocol, to and from the gateway's values.

Source: vLLM 0.33's entrypoints/openai.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorauter.errors import Unavailable, UnprocessableRequest
from lorauter_gateway.adapters import faults
from lorauter_gateway.adapters.faults import unfinished, unsupported
from lorauter_gateway.adapters.tgi_bodies import read_usage
from lorauter_gateway.adapters.tgi_wire import grammar
from lorauter_gateway.domain.model import Answer, FinishReason, Piece, Sampling, Usage
from lorauter_gateway.ports import BackendCall, BackendFailed, Limits

_TOO_LONG = re.compile(r"maximum (context|model) length|max_model_len|longer than the maximum", re.I)
_NOT_LOADED = re.compile(r"LoRA adapter .{1,300} (does not exist|was found but could not be loaded)", re.I)
_SEEDS = 2**64


def completion_body(call: BackendCall, model: str, stream: bool) -> dict[str, object]:
    """Returns the body of /v1/completions.

    Where ``max_new_tokens`` is None vLLM generates at most 16 tokens, as OpenAI does. Raises InvalidArgument
    (UNSUPPORTED_FIELD) for TGI's parameters that vLLM cannot honour.
    """
    return {"model": model, "prompt": call.prompt, **_settings(call.sampling, stream)}


def chat_body(call: BackendCall, model: str, stream: bool) -> dict[str, object]:
    """Returns the body of /v1/chat/completions; raises as completion_body does."""
    assert not isinstance(call.prompt, str)
    messages = [{"role": message.role, "content": message.content} for message in call.prompt]
    return {"model": model, "messages": messages, **_settings(call.sampling, stream)}


def reading_body(text: str, model: str) -> dict[str, object]:
    """Returns the body of /v1/completions that asks for the log-probabilities of a text."""
    return {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}


def _settings(sampling: Sampling, stream: bool) -> dict[str, object]:
    settings: dict[str, object] = {
        "stream": stream,
        "temperature": (sampling.temperature or 1.0) if sampling.do_sample else 0.0,
    }
    if stream:
        settings["stream_options"] = {"include_usage": True}
    if sampling.stop:
        settings |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    optional = {
        "max_tokens": sampling.max_new_tokens,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": _seed(sampling.seed),
    }
    given = {name: value for name, value in optional.items() if value is not None}
    return settings | given | _extra(sampling.extra)


def _seed(seed: int | None) -> int | None:
    """Returns the seed as a signed number of 64 bits, as vLLM has it; TGI's is unsigned."""
    return seed - _SEEDS if seed is not None and seed >= _SEEDS // 2 else seed


def _extra(extra: Mapping[str, object]) -> dict[str, object]:
    settings: dict[str, object] = {}
    for name, value in extra.items():
        if name == "truncate":
            settings |= {"truncate_prompt_tokens": value, "truncation_side": "left"}
        elif name == "grammar":
            kind, rule = grammar(value)
            settings["structured_outputs"] = {kind: rule}
        elif name == "frequency_penalty":
            settings[name] = value
        elif _asks(name, value):
            raise unsupported(name, "vLLM")
    return settings


def _asks(name: str, value: object) -> bool:
    """Whether a parameter asks for anything: TGI's clients may send its defaults."""
    return value not in ((1, None) if name == "best_of" else (False, 0, None))


def read_answer(body: Mapping[str, Any]) -> Answer:
    """Returns the answer of /v1/completions or /v1/chat/completions."""
    choice = body["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return _answer(str(text or ""), _reason(choice), read_usage(body["usage"]))


def _reason(choice: Mapping[str, Any]) -> FinishReason:
    told = choice["finish_reason"]
    if told == "length":
        return FinishReason.LENGTH
    if told == "stop":
        # a text is a stop text, a number another token that ends
        return (
            FinishReason.STOP_SEQUENCE
            if isinstance(choice.get("stop_reason"), str)
            else FinishReason.EOS_TOKEN
        )
    error = Unavailable("GENERATION_FAILED", f"vLLM ended the generation: {str(told)[:80]!r}")
    raise BackendFailed(error, is_fault=True)


def _answer(text: str, reason: FinishReason, usage: Usage) -> Answer:
    details: dict[str, object] = {
        "finish_reason": reason.value,
        "generated_tokens": usage.completion_tokens,
        "input_length": usage.prompt_tokens,
        "seed": None,
        "prefill": [],
        "tokens": [],
    }
    return Answer(text, reason, usage, details)


class TextStream:
    """Reads the chunks of a streamed completion or chat; the token counts come in the last one."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None

    def read(self, event: Mapping[str, Any]) -> Piece | None:
        """See exchange.PieceReader."""
        if event.get("usage"):
            self._usage = read_usage(event["usage"])
        for choice in event["choices"]:
            if choice.get("finish_reason"):
                self._reason = _reason(choice)
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            if text:
                self._texts.append(text)
                return Piece(text)
        return None

    def finished(self) -> Piece:
        """See exchange.PieceReader."""
        if self._reason is None or self._usage is None:
            raise unfinished()
        return Piece("", finish=_answer("".join(self._texts), self._reason, self._usage))


def read_prompt(body: Mapping[str, Any]) -> list[float]:
    """Returns the log-probabilities (nats) of the prompt's tokens but the first."""
    told = body["choices"][0].get("prompt_logprobs") or body.get("prompt_logprobs") or []
    found = [float(next(iter(token.values()))["logprob"]) for token in told[1:]]
    if not found:
        raise ValueError("no log-probabilities of the prompt's tokens")
    return found


def listed(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the models of /v1/models."""
    return [model for model in body["data"] if isinstance(model["id"], str)]


def base_of(models: Sequence[Mapping[str, Any]], base_model: str) -> str:
    """Returns the name that a server gives the base: the pool's if it lists that, else its first model
    without a parent; raises ValueError if there is none."""
    bases = [str(model["id"]) for model in models if not model.get("parent")]
    if not bases:
        raise ValueError("no model without a parent")
    return base_model if base_model in bases else bases[0]


def limits_of(models: Sequence[Mapping[str, Any]]) -> Limits:
    """Returns the limits that /v1/models gives: the longest prompt with its answer."""
    longest = next((int(model.get("max_model_len") or 0) for model in models if not model.get("parent")), 0)
    return Limits(max_total_tokens=longest)


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> faults.Fault:
    """Returns the error for an answer with a ``status`` other than 200."""
    message, kind = faults.error_parts(body)
    if status == 404 and (kind == "NotFoundError" or "does not exist" in message):
        return faults.not_servable(message)
    if status == 400 and _NOT_LOADED.search(message):
        return faults.not_servable(message)
    if status == 400 and _TOO_LONG.search(message):
        return UnprocessableRequest("PROMPT_TOO_LONG", message)
    return faults.refusal(status, body, headers)
