"""Exact match: is the answer the target, letter by letter?"""

from __future__ import annotations

from lorauter.metrics.metric import Metric


def exact_match(prediction: str, target: str) -> float:
    """Returns 1.0 if both are equal once white space around them is removed, else 0.0.

    The normalisation is that and nothing more: case, punctuation and inner white space count. Only so does
    it agree with the check that a model's every greedy token is the target's, for targets without white
    space around them. Source: Exact Match of Rajpurkar et al. 2016, without that script's normalisation;
    HELM's ``exact_match`` (Liang et al. 2022, appendix C).
    """
    return float(prediction.strip() == target.strip())


def _of_pass(exact: bool, likelihood: float) -> float:
    return float(exact)


EXACT_MATCH = Metric("exact_match", 1, of_text=exact_match, of_pass=_of_pass)
