"""Likelihood: how probable does the model find the target?"""

from __future__ import annotations

import math

from lorauter.errors import FailedPrecondition
from lorauter.metrics.metric import Metric


def of_pass(exact: bool, likelihood: float) -> float:
    """Returns exp(mean log-likelihood of the target's tokens): their probability, as a geometric mean.

    It is 1 / perplexity, so that it is in 0..1 whatever the target's length. Source: perplexity as in
    Jelinek et al. 1977; length-normalised likelihood as in Brown et al. 2020 (GPT-3), section 2.4. Raises
    FailedPrecondition (NO_LIKELIHOOD) for NaN.
    """
    if math.isnan(likelihood):
        raise FailedPrecondition(
            "NO_LIKELIHOOD",
            "metric 'likelihood' got no likelihood: use a backend that tells it, such as the engine",
        )
    return math.exp(min(0.0, likelihood))


def _fault_in(target: str) -> str | None:
    return None if target else "it is empty and has no tokens; write the text that is to be likely"


LIKELIHOOD = Metric("likelihood", 1, of_pass=of_pass, fault_in=_fault_in)
