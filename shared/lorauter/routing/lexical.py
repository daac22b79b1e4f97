"""Lexical side of a task representation: which words and punctuation a text is made of."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable

MAX_GRAM = 3
"""Longest run of tokens that is a term: three carry the skeleton of a template."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Returns the words, case-folded, and the single punctuation characters of ``text`` in order."""
    return _TOKEN.findall(text.casefold())


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
