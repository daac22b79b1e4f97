"""What a key may still ask for in a minute, and what a request takes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lorauter.errors import Exhausted
from lorauter_gateway.domain.model import Generation

USUAL_ANSWER_TOKENS = 256
"""Tokens that are reserved for an answer whose length nobody bounds."""

_BYTES_OF_TOKEN = 4
_TOKENS_OF_MESSAGE = 4

UNCHECKED = "x-lorauter-quota"
"""Header of an answer whose key's limits could not be looked at."""


@dataclass(frozen=True, slots=True)
class Left:
    """A limit of a minute, what is left of it, and the seconds until all of it is."""

    limit: int
    remaining: int
    reset_seconds: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What the books say to a request. None: the key has no such limit.

    Where it is refused, ``wait_seconds`` is until when it would not be, by nothing but time, and ``is_full``
    whether that is for the number of requests.
    """

    requests: Left | None
    tokens: Left | None
    wait_seconds: float = 0.0
    is_full: bool = False

    def headers(self) -> dict[str, str]:
        """Returns OpenAI's x-ratelimit-* headers."""
        return {
            **_headers("requests", self.requests),
            **_headers("tokens", self.tokens),
        }

    def refusal(self) -> Exhausted:
        """Returns the error of a refused request."""
        left, of = (self.requests, "requests") if self.is_full else (self.tokens, "tokens")
        assert left is not None
        seconds = max(1, math.ceil(self.wait_seconds))
        return Exhausted(
            "QUOTA_EXCEEDED",
            f"the key has used its {left.limit} {of} a minute: retry in {seconds} s",
            retry_after_seconds=str(seconds),
            **self.headers(),
        )


def too_large(tokens: int, limit: int) -> Exhausted:
    """Returns the error of a request that no waiting helps."""
    return Exhausted(
        "QUOTA_EXCEEDED",
        f"the request takes some {tokens} tokens, prompt and answer together, and the key has {limit} a "
        "minute: ask for less",
        **_headers("tokens", Left(limit, limit, 0.0)),
    )


def prompt_estimate(generation: Generation) -> int:
    """Returns about how many tokens a prompt has: only backends have the tokenizer."""
    if isinstance(generation.prompt, str):
        return max(1, math.ceil(len(generation.prompt.encode()) / _BYTES_OF_TOKEN))
    return sum(
        _TOKENS_OF_MESSAGE + math.ceil(len(message.content.encode()) / _BYTES_OF_TOKEN)
        for message in generation.prompt
    )


def answer_estimate(generation: Generation) -> int:
    """Returns how many tokens an answer may have, a guess where the request does not say."""
    return generation.sampling.max_new_tokens or USUAL_ANSWER_TOKENS


def _headers(of: str, left: Left | None) -> Mapping[str, str]:
    if left is None:
        return {}
    return {
        f"x-ratelimit-limit-{of}": str(left.limit),
        f"x-ratelimit-remaining-{of}": str(max(0, left.remaining)),
        f"x-ratelimit-reset-{of}": _duration(left.reset_seconds),
    }


def _duration(seconds: float) -> str:
    """Returns a duration as OpenAI writes it: ``17ms``, ``12s``, ``6m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
