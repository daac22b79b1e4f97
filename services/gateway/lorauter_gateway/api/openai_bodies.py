"""OpenAI's request bodies, and what of them this gateway honours.

Absent ``temperature`` means greedy, not OpenAI's 1: adapters were measured greedily, and an answer
should come from what was measured. Unknown fields are ignored; known ones that would change the
answer and cannot be honoured are refused.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from lorauter.errors import InvalidArgument
from lorauter_gateway.api.bodies import Body
from lorauter_gateway.api.routing import RoutingBody
from lorauter_gateway.domain.model import MAX_STOPS, Message, Sampling, sampling

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class SamplingBody(Body):
    """What chat and plain completions have in common."""

    model: str = Field(description="`auto`, `auto:<pool>`, an adapter's id, or the base model's id.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0, lt=2**64)
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1)
    best_of: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    adapter_id: Any = None
    lorauter: RoutingBody | None = Field(None, description="Restrictions on routing.")

    def sampling(self) -> Sampling:
        """Returns how to sample; raises InvalidArgument for what cannot be honoured."""
        self._refuse_unsupported()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > MAX_STOPS or not all(stop):
            message = f"stop: give at most {MAX_STOPS} texts, none of them empty"
            raise InvalidArgument("INVALID_FIELD", message, field="stop")
        return sampling(
            max_new_tokens=self.limit(),
            do_sample=False if self.temperature == 0 else None,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or None,
            seed=self.seed,
            stop=stop,
        )

    def limit(self) -> int | None:
        """Returns the most new tokens, or None for the backend's default."""
        return self.max_tokens

    def unsupported(self) -> dict[str, object]:
        """Returns the fields that cannot be honoured, by name, where they ask for anything."""
        return {
            "n": (self.n or 1) > 1,
            "best_of": (self.best_of or 1) > 1,
            "logprobs": self.logprobs not in (None, False),
            "top_logprobs": self.top_logprobs,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
        }

    def _refuse_unsupported(self) -> None:
        if self.adapter_id is not None:
            message = "adapter_id: model names what answers on this route; leave adapter_id out"
            raise InvalidArgument("EXCLUSIVE_FIELDS", message, field="adapter_id")
        for field, is_asked in self.unsupported().items():
            if is_asked:
                raise InvalidArgument(
                    "UNSUPPORTED_FIELD", f"{field}: this gateway does not serve it; leave it out", field=field
                )


class ContentPart(BaseModel):
    """A part of a message; only text is served."""

    type: str
    text: str | None = None


class ChatMessageBody(BaseModel):
    """A message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: Any = None

    def to_message(self, field: str) -> Message:
        """Returns the message; raises InvalidArgument (UNSUPPORTED_FIELD) for images and tool calls."""
        if self.role not in _ROLES:
            raise InvalidArgument(
                "INVALID_FIELD",
                f"{field}.role {self.role[:40]!r}: use system, user, assistant or tool",
                field=field,
            )
        if self.tool_calls:
            raise InvalidArgument(
                "UNSUPPORTED_FIELD", f"{field}.tool_calls: tools are not served", field=field
            )
        if self.content is None and self.role != "assistant":
            raise InvalidArgument("MISSING_FIELD", f"{field}.content: a text is needed", field=field)
        return Message(_ROLES[self.role], self._text(field))

    def _text(self, field: str) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        for part in self.content:
            if part.type != "text" or part.text is None:
                message = f"{field}.content: parts of type {part.type[:40]!r} are not served, only text"
                raise InvalidArgument("UNSUPPORTED_FIELD", message, field=field)
        return "".join(part.text or "" for part in self.content)


class ChatBody(SamplingBody):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] | None = None
    tool_choice: Any = None
    tool_prompt: str | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None

    def prompt(self) -> tuple[Message, ...]:
        """Returns the conversation."""
        return tuple(message.to_message(f"messages.{n}") for n, message in enumerate(self.messages))

    def limit(self) -> int | None:
        """See SamplingBody; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    def unsupported(self) -> dict[str, object]:
        """See SamplingBody."""
        return {
            **super().unsupported(),
            "tools": self.tools,
            "tool_choice": self.tool_choice not in (None, "auto", "none"),
            "tool_prompt": self.tool_prompt,
            "functions": self.functions,
            "response_format": (self.response_format or {}).get("type", "text") != "text",
            "modalities": set(self.modalities or ()) - {"text"},
            "audio": self.audio,
        }


class CompletionBody(SamplingBody):
    """The body of /v1/completions."""

    prompt: str | list[str]
    echo: bool | None = None
    suffix: str | None = None

    def text(self) -> str:
        """Returns the one prompt; raises InvalidArgument for several and for an empty one."""
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(texts) != 1:
            raise InvalidArgument("UNSUPPORTED_FIELD", "prompt: send one text per request", field="prompt")
        if not texts[0]:
            raise InvalidArgument("EMPTY_QUERY", "prompt is empty: send the text to continue", field="prompt")
        return texts[0]

    def unsupported(self) -> dict[str, object]:
        """See SamplingBody."""
        return {**super().unsupported(), "echo": self.echo, "suffix": self.suffix}
