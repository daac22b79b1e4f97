"""The engine's bodies: TGI's and OpenAI's with ``adapters``, to and from the gateway's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorauter.errors import Unavailable
from lorauter_gateway.domain.model import Answer, FinishReason, Piece, Usage
from lorauter_gateway.ports import BackendCall, BackendFailed

_FINISH_REASONS = {
    "eos_token": FinishReason.EOS_TOKEN,
    "stop": FinishReason.EOS_TOKEN,
    "length": FinishReason.LENGTH,
    "stop_sequence": FinishReason.STOP_SEQUENCE,
}


def generate_body(call: BackendCall) -> dict[str, object]:
    """Returns the body of /generate and /generate_stream."""
    sampling = call.sampling
    parameters: dict[str, object] = {
        **sampling.extra,
        "details": True,
        "do_sample": sampling.do_sample,
        "adapters": _adapters(call),
    }
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
    parameters.update({name: value for name, value in optional.items() if value is not None})
    return {"inputs": call.prompt, "parameters": parameters}


def chat_body(call: BackendCall, stream: bool) -> dict[str, object]:
    """Returns the body of /v1/chat/completions. Greedy is temperature 0: TGI samples when it is absent."""
    assert not isinstance(call.prompt, str)
    sampling = call.sampling
    body: dict[str, object] = {
        "model": "tgi",  # TGI reads every other name as an adapter
        "messages": [{"role": message.role, "content": message.content} for message in call.prompt],
        "adapters": _adapters(call),
        "stream": stream,
        "temperature": (sampling.temperature or 1.0) if sampling.do_sample else 0.0,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    optional = {
        "max_tokens": sampling.max_new_tokens,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
    }
    body.update({name: value for name, value in optional.items() if value is not None})
    return body


def _adapters(call: BackendCall) -> list[dict[str, object]]:
    return [{"id": adapter.digest, "weight": adapter.weight} for adapter in call.adapters]


def read_answer(body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    """Returns the answer of /generate; prompt tokens come in TGI's header."""
    details = body["details"]
    prompt_tokens = int(headers.get("x-prompt-tokens") or len(details.get("prefill") or ()))
    return _answer(body["generated_text"], details, prompt_tokens)


def read_piece(event: Mapping[str, Any]) -> Piece:
    """Returns the piece of one event of /generate_stream."""
    token = event["token"]
    finish = None
    if event.get("generated_text") is not None:
        details = event["details"]
        finish = _answer(event["generated_text"], details, int(details.get("input_length") or 0))
    text = "" if token.get("special") else str(token["text"])
    return Piece(text, token, event.get("top_tokens"), finish)


def _answer(text: str, details: Mapping[str, Any], prompt_tokens: int) -> Answer:
    usage = Usage(prompt_tokens, int(details["generated_tokens"]))
    return Answer(text, _FINISH_REASONS[details["finish_reason"]], usage, details)


def read_chat_answer(body: Mapping[str, Any]) -> Answer:
    """Returns the answer of /v1/chat/completions."""
    choice = body["choices"][0]
    reason = _FINISH_REASONS[choice["finish_reason"]]
    return Answer(choice["message"]["content"] or "", reason, _usage(body["usage"]))


def _usage(usage: Mapping[str, Any]) -> Usage:
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))


class ChatStream:
    """Reads the chunks of a streamed chat; usage comes after the finish reason, in a chunk of its own."""

    def __init__(self) -> None:
        self._text = ""
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None

    def read(self, chunk: Mapping[str, Any]) -> Piece | None:
        """Returns the piece of a chunk, or None if it holds no text."""
        if chunk.get("usage"):
            self._usage = _usage(chunk["usage"])
        for choice in chunk.get("choices") or ():
            if choice.get("finish_reason"):
                self._reason = _FINISH_REASONS[choice["finish_reason"]]
            if text := (choice.get("delta") or {}).get("content"):
                self._text += text
                return Piece(text)
        return None

    def finished(self) -> Piece:
        """Returns the last piece; raises BackendFailed if the stream ended too early."""
        if self._reason is None or self._usage is None:
            raise unfinished()
        return Piece("", finish=Answer(self._text, self._reason, self._usage))


def unfinished() -> BackendFailed:
    """Returns the error for a stream that ends before the answer does."""
    return BackendFailed(
        Unavailable("STREAM_BROKEN", "the backend's stream ended before the answer did: ask again"),
        try_elsewhere=True,
    )


def broken(failure: BackendFailed) -> BackendFailed:
    """Returns the error for a stream that failed after its first piece."""
    error = Unavailable("STREAM_BROKEN", f"the answer broke off: {failure.error.message}")
    return BackendFailed(error, is_down=failure.is_down)
