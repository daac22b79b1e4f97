"""Orders of arms by what was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorauter.matching.model import Floats
from lorauter.matching.paired import standard_errors

TARGET_TOKENS = 8
"""About how many tokens a target has: what turns a token's likelihood into that of a whole right answer.

Whole answers are what scores count. Tokens alone let one hopeless example outweigh many sure ones.
"""


def best_first(scores: Floats, likelihoods: Floats) -> NDArray[np.intp]:
    """Returns the rows of (S, m) by mean score, best first; ties by certainty, then by row."""
    means = scores.sum(axis=1) / max(scores.shape[1], 1)
    return np.lexsort((-certainty(likelihoods), -means.round(9)))


def tied_first(scores: Floats, likelihoods: Floats) -> NDArray[np.intp]:
    """Returns the rows of (S, m), S ≥ 1, best first, where whoever ties with the best stands by certainty.

    A row ties if its mean is at most one standard error of the paired differences below the best mean: so
    few examples cannot tell them apart, and likelihoods, which vary less, can.
    """
    order = best_first(scores, likelihoods)
    if scores.shape[1] == 0:
        return order
    shortfall = scores[order[0]] - scores[order]
    ties = shortfall.mean(axis=1) <= standard_errors(shortfall)[0]
    tied = order[ties]
    by_certainty = np.argsort(-certainty(likelihoods[tied]), kind="stable")
    return np.concatenate([tied[by_certainty], order[~ties]])


def certainty(likelihoods: Floats) -> Floats:
    """Returns (S,) the mean over each row's known examples of the probability of the target; 0 without any.

    ``likelihoods``: (S, m), the mean log-likelihood of the target's tokens, NaN where unknown.
    """
    known = ~np.isnan(likelihoods)
    chances = np.where(known, np.exp(TARGET_TOKENS * np.where(known, likelihoods, 0.0)), 0.0)
    counts = known.sum(axis=1)
    means: Floats = np.divide(chances.sum(axis=1), counts, out=np.zeros(len(counts)), where=counts > 0)
    return means
