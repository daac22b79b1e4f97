"""The error of mean paired differences, few examples included."""

from __future__ import annotations

import numpy as np

from lorauter.matching.model import Floats

PRIOR_VARIANCE = 0.3
PRIOR_FREEDOM = 2.0
"""Variance of a paired difference of scores, and its degrees of freedom, before any was seen.

So an adapter like the base, answering apart from it, is eligible in at most 7 % of the cases for any number
of examples and any score (5 % from some thirty on), while two wins of two, or three of three, suffice.
"""


def standard_errors(differences: Floats) -> tuple[Floats, float]:
    """Returns (S,) the standard error of each row's mean of (S, m) paired differences, -1..1, m ≥ 1, and the
    degrees of freedom behind it.

    The variance starts from pseudo-observations (the mean of a scaled inverse χ² posterior), so that equal
    differences are not certainty.
    """
    count = differences.shape[1]
    freedom = PRIOR_FREEDOM + count - 1
    squares = ((differences - differences.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    errors: Floats = np.sqrt((PRIOR_FREEDOM * PRIOR_VARIANCE + squares) / freedom / count)
    return errors, freedom
