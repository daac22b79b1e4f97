"""The shapes of OpenAI's answers: whole, and as chunks of a stream."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from lorauter_gateway.domain.model import Answer, FinishReason, Usage

_FINGERPRINT = "lorauter-gateway-1"
"""TGI requires one; what served an answer is in ``model`` and the headers."""


class Shape(Protocol):
    """How an answer looks; one object per answer, whose id all chunks share."""

    route: ClassVar[str]

    def whole(self, text: str, answer: Answer, model: str) -> dict[str, Any]:
        """Returns the body of an answer in one piece."""
        ...

    def first(self, model: str, has_usage: bool) -> dict[str, Any]:
        """Returns the chunk before any text."""
        ...

    def piece(self, text: str, model: str, has_usage: bool) -> dict[str, Any]:
        """Returns a chunk with text."""
        ...

    def last(self, answer: Answer, model: str, has_usage: bool) -> dict[str, Any]:
        """Returns the chunk that says why the answer ended."""
        ...

    def usage(self, answer: Answer, model: str) -> dict[str, Any]:
        """Returns the chunk with the token counts."""
        ...


@dataclass(frozen=True, slots=True)
class _Envelope:
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, kind: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": model,
            "system_fingerprint": _FINGERPRINT,
            "choices": choices,
        }


class ChatShape:
    """A chat completion."""

    route: ClassVar[str] = "openai.chat"

    def __init__(self) -> None:
        self._envelope = _Envelope(f"chatcmpl-{uuid.uuid4().hex}")

    def whole(self, text: str, answer: Answer, model: str) -> dict[str, Any]:
        """See Shape."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
        return {
            **self._envelope.wrap("chat.completion", model, [choice]),
            "usage": _usage(answer.usage),
        }

    def first(self, model: str, has_usage: bool) -> dict[str, Any]:
        """See Shape."""
        return self._chunk({"role": "assistant", "content": ""}, None, model, has_usage)

    def piece(self, text: str, model: str, has_usage: bool) -> dict[str, Any]:
        """See Shape."""
        return self._chunk({"content": text}, None, model, has_usage)

    def last(self, answer: Answer, model: str, has_usage: bool) -> dict[str, Any]:
        """See Shape."""
        return self._chunk({}, _reason(answer), model, has_usage)

    def usage(self, answer: Answer, model: str) -> dict[str, Any]:
        """See Shape."""
        return {**self._envelope.wrap("chat.completion.chunk", model, []), "usage": _usage(answer.usage)}

    def _chunk(
        self, delta: dict[str, Any], reason: str | None, model: str, has_usage: bool
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = self._envelope.wrap("chat.completion.chunk", model, [choice])
        return {**chunk, "usage": None} if has_usage else chunk


class CompletionShape:
    """A plain completion."""

    route: ClassVar[str] = "openai.completions"

    def __init__(self) -> None:
        self._envelope = _Envelope(f"cmpl-{uuid.uuid4().hex}")

    def whole(self, text: str, answer: Answer, model: str) -> dict[str, Any]:
        """See Shape."""
        return {**self._chunk(text, _reason(answer), model, False), "usage": _usage(answer.usage)}

    def first(self, model: str, has_usage: bool) -> dict[str, Any]:
        """See Shape."""
        return self._chunk("", None, model, has_usage)

    def piece(self, text: str, model: str, has_usage: bool) -> dict[str, Any]:
        """See Shape."""
        return self._chunk(text, None, model, has_usage)

    def last(self, answer: Answer, model: str, has_usage: bool) -> dict[str, Any]:
        """See Shape."""
        return self._chunk("", _reason(answer), model, has_usage)

    def usage(self, answer: Answer, model: str) -> dict[str, Any]:
        """See Shape."""
        return {**self._envelope.wrap("text_completion", model, []), "usage": _usage(answer.usage)}

    def _chunk(self, text: str, reason: str | None, model: str, has_usage: bool) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        chunk = self._envelope.wrap("text_completion", model, [choice])
        return {**chunk, "usage": None} if has_usage else chunk


def _reason(answer: Answer) -> str:
    return "length" if answer.finish_reason is FinishReason.LENGTH else "stop"


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
