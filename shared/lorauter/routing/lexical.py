"""Lexical side of a task representation: which words and punctuation a text is made of."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable

MAX_GRAM = 3
"""Longest run of tokens that is a term: three carry the skeleton of a template."""

MAX_CHARACTERS = 32_768
"""Of a longer text so much is read, half of it from either end, as the encoder does: all of 1 MiB would stop
a router for seconds."""

_TOKEN = re.compile(r"[\w\u0300-\u036f]+|[^\w\s]")
_LONGEST_COMPOSED = 64
"""Composing takes the square of a run of accents: no word is longer."""


def tokens(text: str) -> list[str]:
    """Returns the words, case-folded, and the single punctuation characters of ``text`` in order.

    A letter with an accent is one character or two (NFC or NFD): both give the same word.
    """
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS // 2]}\n{text[-MAX_CHARACTERS // 2 :]}"
    found = _TOKEN.findall(text.casefold())
    return found if text.isascii() else [_composed(word) for word in found]


def _composed(word: str) -> str:
    if word.isascii() or len(word) > _LONGEST_COMPOSED:
        return word
    return unicodedata.normalize("NFC", word)


def term_hash(words: Iterable[str]) -> int:
    """Returns the 32-bit id of a term: CRC-32 of its tokens joined by spaces; the same everywhere."""
    return zlib.crc32(" ".join(words).encode(errors="replace"))


def term_frequencies(text: str) -> dict[int, float]:
    """Returns how often each term (1 to 3 consecutive tokens) occurs, by its 32-bit hash.

    Terms whose hashes collide are counted together. Empty for a text without tokens.
    """
    words = tokens(text)
    counts: Counter[int] = Counter()
    for size in range(1, MAX_GRAM + 1):
        grams = Counter(zip(*(words[start:] for start in range(size)), strict=False))
        for gram, count in grams.items():
            counts[term_hash(gram)] += count
    return {term: float(count) for term, count in counts.items()}
