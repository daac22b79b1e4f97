"""Turns token ids into text as they come: whole characters only, stop sequences across token borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
_WINDOW = 6
"""Tokens before the new one that are decoded again, so that spaces between words come out right."""

_LONGEST_WINDOW = 24
"""The window is cut back to _WINDOW when it reaches this many tokens."""

_MOST_BYTES = 3
"""A character of UTF-8 lacks its last byte after at most three, each of which may show as one mark."""


class Decoder(Protocol):
    """Decodes token ids."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """Returns the text of ``ids``; an unfinished character at the end becomes U+FFFD."""
        ...


class Detokenizer:
    """The text of one generation. Special tokens such as EOS are not part of it."""

    def __init__(self, decoder: Decoder, prompt_ids: Sequence[int]) -> None:
        self._decoder = decoder
        self._ids = list(prompt_ids[-_WINDOW:])
        self._given = len(decoder.decode(self._ids, skip_special=True))
        self.text = ""

    def add(self, tokens: Sequence[int]) -> str:
        """Takes tokens; returns the text that is complete because of them, which may be empty."""
        self._ids.extend(tokens)
        known = self._decoder.decode(self._ids, skip_special=True)
        stable = known[: len(known) - _unfinished(known)]
        piece = stable[self._given :]
        self._given = max(self._given, len(stable))
        self.text += piece
        if len(self._ids) > _LONGEST_WINDOW and stable == known:
            self._ids = self._ids[-_WINDOW:]
            self._given = len(self._decoder.decode(self._ids, skip_special=True))
        return piece


def _unfinished(text: str) -> int:
    """Returns how many marks at the end may be a character whose other bytes are still to come."""
    return next((n for n in range(_MOST_BYTES) if not text.endswith(_REPLACEMENT * (n + 1))), _MOST_BYTES)


class StopWatch:
    """Finds the first stop sequence in a growing text."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = tuple(sequences)
        self._longest = max(map(len, sequences), default=0)
        self._searched = 0

    def find(self, text: str) -> tuple[int, int] | None:
        """Returns (start, end) of the stop sequence that begins first in ``text``; the longest of equals."""
        if not self._sequences:
            return None
        start = max(0, self._searched - self._longest + 1)
        self._searched = len(text)
        found = [
            (place, -len(sequence))
            for sequence in self._sequences
            if (place := text.find(sequence, start)) >= 0
        ]
        if not found:
            return None
        place, negative_length = min(found)
        return place, place - negative_length

    def held_back(self, text: str) -> int:
        """Returns how many characters at the end of ``text`` may be the beginning of a stop sequence."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(sequence.startswith(text[-length:]) for sequence in self._sequences):
                return length
        return 0
