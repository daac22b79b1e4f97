"""What Text Generation Inference 3.3 and the engine have in common: their bodies and answers.

Source: TGI's docs/openapi.json and router/src.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorauter_gateway.adapters.faults import unfinished
from lorauter_gateway.domain.model import Answer, FinishReason, Piece, Sampling, Usage
from lorauter_gateway.ports import BackendCall, Limits

BASE_MODEL = "tgi"
"""The base in a chat's ``model``: every other name is read as an adapter."""

_FINISH_REASONS = {
    "eos_token": FinishReason.EOS_TOKEN,
    "stop": FinishReason.EOS_TOKEN,
    "length": FinishReason.LENGTH,
    "stop_sequence": FinishReason.STOP_SEQUENCE,
}


def parameters(sampling: Sampling) -> dict[str, object]:
    """Returns the parameters of /generate that every request may have."""
    optional = {
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    return {"details": True, "do_sample": sampling.do_sample, **given}


def chat_body(call: BackendCall, model: str, stream: bool) -> dict[str, object]:
    """Returns the body of /v1/chat/completions. Greedy is temperature 0: TGI samples when it is absent."""
    assert not isinstance(call.prompt, str)
    sampling = call.sampling
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in call.prompt],
        "stream": stream,
        "temperature": (sampling.temperature or 1.0) if sampling.do_sample else 0.0,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    optional = {
        "max_tokens": sampling.max_new_tokens,
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
    }
    return body | {name: value for name, value in optional.items() if value is not None}


def read_answer(body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    """Returns the answer of /generate; prompt tokens come in TGI's header."""
    details = body["details"]
    prompt_tokens = int(headers.get("x-prompt-tokens") or len(details.get("prefill") or ()))
    return _answer(body["generated_text"], details, prompt_tokens)


def read_prefill(body: Mapping[str, Any]) -> list[float]:
    """Returns the log-probabilities (nats) of the prompt's tokens but the first."""
    told = [float(token["logprob"]) for token in body["details"]["prefill"][1:]]
    if not told:
        raise ValueError("no log-probabilities of the prompt's tokens")
    return told


def _answer(text: str, details: Mapping[str, Any], prompt_tokens: int) -> Answer:
    if not isinstance(text, str):
        raise TypeError("generated_text is no text")
    usage = Usage(prompt_tokens, int(details["generated_tokens"]))
    return Answer(text, _FINISH_REASONS[details["finish_reason"]], usage, details)


class GenerateStream:
    """Reads the events of /generate_stream, whose last token's event holds the answer."""

    def read(self, event: Mapping[str, Any]) -> Piece:
        """See exchange.PieceReader."""
        token = event["token"]
        finish = None
        if event.get("generated_text") is not None:
            details = event["details"]
            finish = _answer(event["generated_text"], details, int(details.get("input_length") or 0))
        text = "" if token.get("special") else str(token["text"])
        return Piece(text, token, event.get("top_tokens"), finish)

    def finished(self) -> Piece:
        """See exchange.PieceReader."""
        raise unfinished()


def read_chat_answer(body: Mapping[str, Any]) -> Answer:
    """Returns the answer of /v1/chat/completions."""
    choice = body["choices"][0]
    reason = _FINISH_REASONS[choice["finish_reason"]]
    return Answer(choice["message"]["content"] or "", reason, read_usage(body["usage"]))


def read_usage(usage: Mapping[str, Any]) -> Usage:
    """Returns token counts as OpenAI's protocol has them."""
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))


class ChatStream:
    """Reads the chunks of a streamed chat; usage comes after the finish reason, in a chunk of its own."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None

    def read(self, event: Mapping[str, Any]) -> Piece | None:
        """See exchange.PieceReader."""
        if event.get("usage"):
            self._usage = read_usage(event["usage"])
        for choice in event.get("choices") or ():
            if choice.get("finish_reason"):
                self._reason = _FINISH_REASONS[choice["finish_reason"]]
            if text := (choice.get("delta") or {}).get("content"):
                self._texts.append(text)
                return Piece(text)
        return None

    def finished(self) -> Piece:
        """See exchange.PieceReader."""
        if self._reason is None or self._usage is None:
            raise unfinished()
        return Piece("", finish=Answer("".join(self._texts), self._reason, self._usage))


def read_limits(info: Mapping[str, Any]) -> Limits:
    """Returns the limits that /info gives."""
    names: Sequence[str] = ("max_input_tokens", "max_total_tokens", "max_best_of", "max_concurrent_requests")
    return Limits(*(int(info.get(name) or 0) for name in names))
