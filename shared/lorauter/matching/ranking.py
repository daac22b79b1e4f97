"""Orders of arms by what was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorauter.matching.model import Floats

LEAST_LIKELIHOOD = -50.0
"""What a lower log-likelihood of a token counts as: it is nil either way, and -inf has no mean."""


def best_first(scores: Floats, likelihoods: Floats) -> NDArray[np.intp]:
    """Returns the rows of (S, m) by mean score, best first; ties by mean likelihood, then by row."""
    return np.lexsort((-mean_likelihoods(likelihoods), -scores.mean(axis=1).round(9)))


def mean_likelihoods(likelihoods: Floats) -> Floats:
    """Returns (S,) the mean of each row's known likelihoods; the least of all where none is known."""
    known = ~np.isnan(likelihoods)
    counts = known.sum(axis=1)
    totals = np.where(known, np.maximum(np.nan_to_num(likelihoods, nan=0.0), LEAST_LIKELIHOOD), 0.0).sum(
        axis=1
    )
    means: Floats = np.divide(totals, counts, out=np.full(len(counts), LEAST_LIKELIHOOD), where=counts > 0)
    return means
