"""How far a thinly measured score is drawn towards what is usual on its task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorauter.matching.model import Floats, Table

UNKNOWN_WEIGHT = 2.0
"""Weight of what is usual where the task's own data cannot tell it."""

LEAST_WEIGHT = 0.5
MOST_WEIGHT = 50.0
"""Bounds of the weight: estimates of a ratio of variances run away where either is about 0."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What adapters usually score on a task, and how many examples that knowledge is worth."""

    score: float
    weight: float


def usual_scores(table: Table) -> Usual:
    """Returns the empirical-Bayes prior of a task's adapters.

    From the examples on which all of its measured adapters were measured, so that those that were measured
    further, being better, do not count for more. ``weight`` is the variance within an adapter's scores over
    the variance between adapters' true means, both by the method of moments (Morris, "Parametric empirical
    Bayes inference", 1983): a mean of n is drawn by weight / (n + weight).
    """
    scores = table.scores[table.adapters]
    scores = scores[~np.isnan(scores).all(axis=1)]
    if len(scores) == 0:
        return Usual(0.0, UNKNOWN_WEIGHT)
    common = scores[:, ~np.isnan(scores).any(axis=0)]
    adapters, examples = common.shape
    if examples == 0:
        return Usual(float(np.nanmean(scores, axis=1).mean()), UNKNOWN_WEIGHT)
    usual = float(common.mean())
    if adapters < 3 or examples < 2:
        return Usual(usual, UNKNOWN_WEIGHT)
    return Usual(usual, _weight(common))


def _weight(scores: Floats) -> float:
    within = float(scores.var(axis=1, ddof=1).mean())
    between = float(scores.mean(axis=1).var(ddof=1)) - within / scores.shape[1]
    return float(np.clip(within / max(between, 1e-9), LEAST_WEIGHT, MOST_WEIGHT))
