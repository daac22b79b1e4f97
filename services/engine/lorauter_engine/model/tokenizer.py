"""The base model's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer

from lorauter.errors import FailedPrecondition, UnprocessableRequest

_KEPT_TEXT = 4096
"""Texts of up to this many characters are remembered with their tokens."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a text with its place in it, in characters."""

    id: int
    text: str
    start: int
    stop: int


class TextCodec:
    """Encodes, decodes and renders chats. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise FailedPrecondition(
                "TOKENIZER_UNREADABLE", f"LORAUTER_MODEL: no tokenizer there: {error}"
            ) from None
        if not tokenizer.is_fast:
            raise FailedPrecondition("TOKENIZER_UNSUPPORTED", "LORAUTER_MODEL: it needs a tokenizer.json")
        self._tokenizer = tokenizer
        self._fast = tokenizer.backend_tokenizer
        self._fast.no_truncation()
        self._fast.no_padding()
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.eos_id: int | None = tokenizer.eos_token_id
        self._ids_of = lru_cache(maxsize=4096)(self._encode)
        self._text_of = lru_cache(maxsize=65_536)(self._decode_one)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Returns the ids of ``text``; ``add_special`` lets the tokenizer add BOS and the like."""
        # Matching sends each prompt once for every adapter.
        return list(
            self._ids_of(text, add_special) if len(text) <= _KEPT_TEXT else self._encode(text, add_special)
        )

    def pieces(self, text: str, add_special: bool = True) -> list[Piece]:
        """Returns the tokens of ``text`` with their places; ``add_special`` as for encode()."""
        encoding = self._fast.encode(text, add_special_tokens=add_special)
        return [
            Piece(token, text[start:stop], start, stop)
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def continuation(
        self, prompt: str, prompt_ids: Sequence[int], target: str, add_special: bool
    ) -> list[int]:
        """Returns the ids of ``target`` as they follow ``prompt``.

        Where the tokens of both together begin with the prompt's, the rest is taken, so that a tokenizer
        that marks the beginning of words does not see one here; else the target's own.
        """
        together = self.encode(prompt + target, add_special)
        if len(together) > len(prompt_ids) and together[: len(prompt_ids)] == list(prompt_ids):
            tail = together[len(prompt_ids) :]
            # A template such as BERT's may close the text.
            return [token for token in tail if token not in self.special_ids] or self.encode(target, False)
        return self.encode(target, False)

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """Returns the text of ``ids``."""
        text: str = self._fast.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_text(self, token: int) -> str:
        """Returns the text of one token by itself, special ones included."""
        return self._text_of(token)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Returns the prompt that the model's chat template makes of ``messages``.

        Raises UnprocessableRequest (TEMPLATE_ERROR).
        """
        if not self._tokenizer.chat_template:
            raise UnprocessableRequest(
                "TEMPLATE_ERROR", "the model has no chat template: send a prompt to /generate"
            )
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise UnprocessableRequest(
                "TEMPLATE_ERROR", f"the chat template refuses these messages: {error}"
            ) from None
        return rendered

    def _encode(self, text: str, add_special: bool) -> tuple[int, ...]:
        return tuple(self._fast.encode(text, add_special_tokens=add_special).ids)

    def _decode_one(self, token: int) -> str:
        return self.decode([token], skip_special=False)
