"""Token F1: how many words do answer and target share?"""

from __future__ import annotations

from collections import Counter

from lorauter.metrics.metric import Metric
from lorauter.metrics.words import MAX_CHARACTERS, squad_words


def token_f1(prediction: str, target: str) -> float:
    """Returns the F1 of the words that both share, counted as often as they occur in both.

    Words are lower case, without ASCII punctuation and English articles. Without any word left on one side
    it is 1.0 if there is none on the other, else 0.0. The first 65,536 characters of either are read.
    Source: ``compute_f1`` of the SQuAD 2.0 evaluation script (Rajpurkar et al. 2018).
    """
    said = squad_words(prediction[:MAX_CHARACTERS])
    wanted = squad_words(target[:MAX_CHARACTERS])
    if not said or not wanted:
        return float(said == wanted)
    return f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def f1(shared: int, said: int, wanted: int) -> float:
    """Returns the harmonic mean of precision and recall from counts; 0.0 where nothing is shared."""
    if shared == 0:
        return 0.0
    precision, recall = shared / said, shared / wanted
    return 2 * precision * recall / (precision + recall)


def _fault_in(target: str) -> str | None:
    if squad_words(target[:MAX_CHARACTERS]):
        return None
    return "no word is left without punctuation and articles; write words, or use exact_match"


TOKEN_F1 = Metric("token_f1", 1, of_text=token_f1, fault_in=_fault_in)
