"""BLEU and chrF of one answer, by sacrebleu (Post 2018), which is imported when the first is scored."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lorauter.metrics.metric import Metric
from lorauter.metrics.words import MAX_CHARACTERS

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF


def bleu(prediction: str, target: str) -> float:
    """Returns sentence BLEU / 100.

    Up to 4-grams of WMT's 13a tokens, case kept; orders that the answer is too short for are left out
    (effective order) and orders without a match are smoothed exponentially, so that one answer can be
    scored by itself. Of either text the first 65,536 characters are read. Source: Papineni et al. 2002;
    smoothing 3 of Chen and Cherry 2014; sacrebleu's signature
    ``nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp``.
    """
    return _share(_bleu().sentence_score(prediction[:MAX_CHARACTERS], [target[:MAX_CHARACTERS]]).score)


def chrf(prediction: str, target: str) -> float:
    """Returns sentence chrF2 / 100: the F-score, recall weighted twice, of character 1- to 6-grams.

    Needs no tokeniser and suits every script; white space is left out, case is kept, orders that either
    text is too short for are left out. Of either text the first 65,536 characters are read. Source:
    Popović 2015 and 2016; sacrebleu's signature ``nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no``.
    """
    return _share(_chrf().sentence_score(prediction[:MAX_CHARACTERS], [target[:MAX_CHARACTERS]]).score)


def _share(percent: float) -> float:
    # sums of logarithms end a little above 100
    return min(1.0, max(0.0, percent / 100))


@cache
def _bleu() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="13a", smooth_method="exp", effective_order=True)


@cache
def _chrf() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(char_order=6, word_order=0, beta=2)


def _fault_in_bleu(target: str) -> str | None:
    # what the 13a tokeniser drops is no token: sacrebleu may be missing where targets are checked
    left = target[:MAX_CHARACTERS].replace("<skipped>", "").replace("-\n", "")
    return None if left.strip() else "it has no words; write the text that is wanted"


def _fault_in_chrf(target: str) -> str | None:
    return None if target[:MAX_CHARACTERS].strip() else "it is blank; write the text that is wanted"


BLEU_METRIC = Metric("bleu", 1, of_text=bleu, fault_in=_fault_in_bleu)
CHRF_METRIC = Metric("chrf", 1, of_text=chrf, fault_in=_fault_in_chrf)
