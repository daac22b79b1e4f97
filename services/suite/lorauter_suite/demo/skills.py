"""The functions that the demo adapters compute, and the payloads that they compute them on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Literal

from lorauter_suite.demo.words import FIRST_NAMES, LAST_NAMES, WORDS

Split = Literal["train", "validation", "test"]
Skill = Callable[[str], str]

VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
DIGITS = "0123456789"


def seeded(*names: object) -> random.Random:
    """A random stream of its own for `names`, the same in every process."""
    return random.Random("/".join(map(str, names)))  # noqa: S311  (no secrets here)


def next_symbol(symbol: str) -> str:
    """The letter or digit that follows `symbol`; z and 9 wrap round, anything else stays."""
    if symbol.isdigit():
        return str((int(symbol) + 1) % 10)
    return chr((ord(symbol) - ord("a") + 1) % 26 + ord("a")) if symbol.isalpha() else symbol


def join_pairs(payload: str) -> str:
    """Every symbol of `payload` twice in a row."""
    return "".join(symbol * 2 for symbol in payload)


SKILLS: Mapping[str, Skill] = {
    "reverse": lambda payload: payload[::-1],
    "sort": lambda payload: "".join(sorted(payload)),
    "shift": lambda payload: "".join(next_symbol(symbol) for symbol in payload),
    "upper": str.upper,
    "double": join_pairs,
    "count": lambda payload: str(len(payload)),
    "vowels": lambda payload: "".join(symbol for symbol in payload if symbol not in VOWELS),
    "dash": "-".join,
}
"""The functions by cluster; each takes a payload and gives the right answer."""


def payload_split(payload: str) -> Split:
    """The split that owns `payload`: a fixed function of its text, so splits never share a payload."""
    bucket = hashlib.sha256(payload.encode()).digest()[0] % 10
    return "train" if bucket < 6 else "validation" if bucket < 8 else "test"


def _syllables(rng: random.Random) -> str:
    """A pronounceable pseudo-word of 4 to 6 letters."""
    length = rng.randint(4, 6)
    offset = rng.randint(0, 1)
    return "".join(rng.choice(VOWELS if (i + offset) % 2 else CONSONANTS) for i in range(length))


def _word(rng: random.Random, split: Split) -> str:
    if split != "train":
        return rng.choice(WORDS)
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(WORDS)
    if kind < 0.5:
        return _syllables(rng)
    return "".join(rng.choice(VOWELS + CONSONANTS) for _ in range(rng.randint(3, 8)))


def _number(rng: random.Random, split: Split) -> str:
    return "".join(rng.choice(DIGITS) for _ in range(rng.randint(4, 6)))


def _code(rng: random.Random, split: Split) -> str:
    """Letters and digits mixed, such as `kt4a7`, with at least two of each and at least one vowel."""
    length = rng.randint(4, 6)
    letters = rng.randint(2, length - 2)
    symbols = [rng.choice(VOWELS)] + [rng.choice(VOWELS + CONSONANTS) for _ in range(letters - 1)]
    symbols += [rng.choice(DIGITS) for _ in range(length - letters)]
    rng.shuffle(symbols)
    return "".join(symbols)


def _name(rng: random.Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.5:
        return f"{_syllables(rng)[:4]} {_syllables(rng)[:4]}"
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


DOMAINS: Mapping[str, Callable[[random.Random, Split], str]] = {
    "word": _word,
    "number": _number,
    "code": _code,
    "name": _name,
}
"""Payload generators by domain."""


def draw_payload(rng: random.Random, domain: str, split: Split) -> str:
    """A payload of `domain` that belongs to `split`."""
    while True:
        payload = DOMAINS[domain](rng, split)
        if payload_split(payload) == split:
            return payload
