"""Texts as words, as SQuAD's evaluation script compares them."""

from __future__ import annotations

import re
import string

MAX_CHARACTERS = 65_536
"""Metrics whose work grows with the text read this many characters of either; no target is longer."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_words(text: str) -> list[str]:
    """Returns the words of a text: lower case, no ASCII punctuation, no English articles.

    Source: ``normalize_answer`` of the SQuAD 2.0 evaluation script (Rajpurkar et al. 2016, 2018).
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
