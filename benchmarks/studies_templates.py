"""Which texts were written by the same template, told from the texts alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorauter.routing.lexical import tokens

RUN = 5
"""Tokens in a row that two texts share if one template made them."""

ENDS = 12
"""Tokens at either end of a text in which a template is looked for."""

_OPTIONS = re.compile(r"options\s*:(\s*\n\s*[-(][^\n]*)+", re.IGNORECASE)

Groups = NDArray[np.intp]


def templates_of(texts: Sequence[str]) -> Groups:
    """Returns (n,) numbers of groups: texts in different groups share no wording.

    Texts are joined that share a run of five tokens within their first or last twelve, lists of options left
    out, whatever their tasks.
    """
    held: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        for run in _runs(text):
            held[run].append(number)
    parents = list(range(len(texts)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for numbers in held.values():
        for other in numbers[1:]:
            parents[root(other)] = root(numbers[0])
    return np.unique([root(number) for number in range(len(texts))], return_inverse=True)[1].astype(np.intp)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = tokens(_OPTIONS.sub(" ", text))
    return {
        tuple(part[start : start + RUN])
        for part in (words[:ENDS], words[-ENDS:])
        for start in range(len(part) - RUN + 1)
    }
