"""How a task's input becomes a request: one function for matching and serving alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

DEFAULT_MAX_NEW_TOKENS = 64
"""What 0 or nothing means for a task's ``max_new_tokens``."""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """How prompts are built: RAW, the input is the prompt; CHAT, it is a user's message after ``system``."""

    format: Literal["RAW", "CHAT"] = "RAW"
    system: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Reads what to_json() wrote, as stored in task.prompt; absent fields take their defaults."""
        return cls(format="CHAT" if value.get("format") == "CHAT" else "RAW", system=value.get("system", ""))

    def to_json(self) -> dict[str, str]:
        """Returns ``{"format", "system"}``."""
        return {"format": self.format, "system": self.system}


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """How answers are generated: at most ``max_new_tokens`` tokens, greedily, until one of ``stop``."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    stop: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Reads what to_json() wrote, as stored in task.generation_settings."""
        return cls(
            max_new_tokens=value.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS,
            stop=tuple(value.get("stop", ())),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns ``{"max_new_tokens", "stop"}``."""
        return {"max_new_tokens": self.max_new_tokens, "stop": list(self.stop)}


def prompt_digest(prompt: PromptSpec, settings: GenerationSpec) -> str:
    """Returns ``sha256:`` and 64 hex digits over all that turns an input into an answer.

    Equal for matching and serving; a part of every affinity.
    """
    content = {"prompt": prompt.to_json(), "generation_settings": settings.to_json()}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def build_input(prompt: PromptSpec, text: str) -> dict[str, Any]:
    """Returns ``{"prompt": text}``, or ``{"messages": […]}`` which the backend's chat template renders."""
    if prompt.format == "RAW":
        return {"prompt": text}
    messages = [{"role": "user", "content": text}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    return {"messages": messages}
