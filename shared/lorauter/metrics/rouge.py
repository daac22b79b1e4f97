"""ROUGE-1, ROUGE-2 and ROUGE-L: which n-grams, or which words in order, do answer and target share?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from lorauter.metrics.metric import Metric
from lorauter.metrics.token_f1 import f1
from lorauter.metrics.words import MAX_CHARACTERS

_WORD = re.compile(r"[a-z0-9]+")


def rouge_words(text: str) -> list[str]:
    """Returns the runs of a-z and 0-9 in the lower-case text, as ROUGE's usual tokeniser does."""
    return _WORD.findall(text[:MAX_CHARACTERS].lower())


def rouge_n(prediction: str, target: str, n: int) -> float:
    """Returns the F1 of the n-grams of words that both share, counted as often as they occur in both.

    Words are those of rouge_words(), unstemmed; of either text the first 65,536 characters are read.
    Source: Lin 2004, "ROUGE", section 2; values are those of rouge-score 0.1.2 without stemmer (fmeasure).
    """
    said = _grams(rouge_words(prediction), n)
    wanted = _grams(rouge_words(target), n)
    return f1((said & wanted).total(), said.total(), wanted.total())


def rouge_1(prediction: str, target: str) -> float:
    """Returns rouge_n() of words. Source: Lin 2004, "ROUGE", section 2."""
    return rouge_n(prediction, target, 1)


def rouge_2(prediction: str, target: str) -> float:
    """Returns rouge_n() of pairs of words. Source: Lin 2004, "ROUGE", section 2."""
    return rouge_n(prediction, target, 2)


def rouge_l(prediction: str, target: str) -> float:
    """Returns the F1 of the longest common subsequence of words, over the whole texts as one sentence.

    Words and limits as rouge_n(). Source: Lin 2004, "ROUGE", section 3.1 with beta = 1; values are those of
    rouge-score 0.1.2, ``rougeL`` without stemmer (fmeasure).
    """
    said, wanted = rouge_words(prediction), rouge_words(target)
    return f1(common_length(said, wanted), len(said), len(wanted))


def common_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    Bit-parallel, so that two texts of tens of thousands of words take well under a second. Source: Hyyrö
    2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for index, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(left)) - 1
    row = full
    for word in right:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(left) - row.bit_count()


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _needs_words(least: int) -> Callable[[str], str | None]:
    def fault_in(target: str) -> str | None:
        words = len(rouge_words(target))
        if words >= least:
            return None
        return f"it has {words} of at least {least} words of a-z and 0-9; write more, or use chrf"

    return fault_in


ROUGE_1 = Metric("rouge1", 1, of_text=rouge_1, fault_in=_needs_words(1))
ROUGE_2 = Metric("rouge2", 1, of_text=rouge_2, fault_in=_needs_words(2))
ROUGE_L = Metric("rougeL", 1, of_text=rouge_l, fault_in=_needs_words(1))
