"""What share of the traffic each task has, from decisions as far as there are enough of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lorauter.manifests.model import Floats

LEAST_PRIOR = 100.0
"""Decisions that the uniform prior counts as, at least; one for each task where there are more tasks."""


def traffic_shares(counts: Mapping[str, float], tasks: Sequence[str]) -> Floats:
    """Returns the expected share of each task, (T,), which sum to 1 where there is a task.

    ``counts``: decisions by task, parts of one where it was spread over several; other tasks than ``tasks``
    are left aside. The mean of a Dirichlet posterior under a symmetric prior: few decisions change little,
    and no task ever has no share.
    """
    if not tasks:
        return np.zeros(0)
    seen = np.array([counts.get(task, 0.0) for task in tasks], dtype=np.float64)
    prior = max(LEAST_PRIOR, float(len(tasks)))
    blended: Floats = (seen + prior / len(tasks)) / float(seen.sum() + prior)
    return blended
