"""The bodies of OpenAI's requests, with ``adapters``."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lorauter.errors import UnprocessableRequest
from lorauter_engine.api.schemas import (
    Adapters,
    Body,
    Messages,
    Penalty,
    Positive,
    Seed,
    Share,
    Stops,
    refuse,
)
from lorauter_engine.service.prepare import Wish

MAX_PROMPTS = 4
"""Most prompts in one /v1/completions call: TGI's max_client_batch_size."""


class StreamOptions(Body):
    """OpenAI's stream_options."""

    include_usage: bool = False


class OpenAiBody(Body):
    """What chats and completions share."""

    model: str | None = Field(None, max_length=256)
    adapters: Adapters | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Positive | None = None
    max_tokens: int | None = Field(None, ge=1)
    seed: Seed | None = None
    stop: Stops | Annotated[str, Field(min_length=1)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    top_k: int | None = Field(None, ge=1)

    def openai_wish(self, adapters: list[tuple[str, float]], max_tokens: int | None, top: int) -> Wish:
        """Returns what is asked for; OpenAI samples unless the temperature is 0."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        is_greedy = self.temperature == 0
        return Wish(
            max_new_tokens=max_tokens,
            do_sample=not is_greedy,
            seed=self.seed,
            temperature=None if is_greedy else self.temperature,
            top_p=None if is_greedy else self.top_p,
            top_k=None if is_greedy else self.top_k,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            stop=stop or (),
            top_n_tokens=top,
            adapters=adapters,
        )


class ChatRequest(OpenAiBody):
    """Body of /v1/chat/completions and /chat_tokenize."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: int | None = Field(None, ge=1)
    logit_bias: Any = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    tool_prompt: str | None = None

    @model_validator(mode="after")
    def _served(self) -> Self:
        response_format = self.response_format
        if isinstance(response_format, dict) and response_format.get("type") == "text":
            response_format = None
        refuse(
            {
                "n": (self.n or 1) > 1,
                "logit_bias": bool(self.logit_bias),
                "response_format": bool(response_format),
                "tools": bool(self.tools),
                "tool_choice": self.tool_choice not in (None, "auto", "none"),
                "tool_prompt": bool(self.tool_prompt),
            }
        )
        if self.top_logprobs and not self.logprobs:
            raise UnprocessableRequest(
                "INVALID_FIELD", "top_logprobs: set logprobs to true with it", field="top_logprobs"
            )
        for message in self.messages:
            message.plain()
        return self


class CompletionRequest(OpenAiBody):
    """Body of /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    suffix: str | None = None
    best_of: int | None = None
    n: int | None = None
    logprobs: int | bool | None = None
    logit_bias: Any = None
    echo: bool = False

    @model_validator(mode="after")
    def _served(self) -> Self:
        refuse(
            {
                "suffix": bool(self.suffix),
                "best_of": (self.best_of or 1) > 1,
                "n": (self.n or 1) > 1,
                "logprobs": self.logprobs not in (None, False),
                "logit_bias": bool(self.logit_bias),
            }
        )
        return self
