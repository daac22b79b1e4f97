"""What a matching found: each arm's affinity with its evidence, and the adapter that was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorauter.matching.model import Floats, Plan, Table
from lorauter.matching.ranking import LEAST_LIKELIHOOD, best_first

PRIOR_COUNT = 2.0
"""Pseudo-examples by which a score is drawn towards what is usual on the task."""

PRIOR_VARIANCE = 0.25
PRIOR_FREEDOM = 2.0
"""Variance of a paired difference, and of how many degrees of freedom, before any was seen."""

_Z = 1.6448536269514722
"""Quantile of the normal distribution for a one-sided confidence of 95 %."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """An affinity's evidence.

    ``score``: mean, 0..1, over the ``count`` examples measured, with its ``standard_error``; 0, and 0.5,
    where ``count`` is 0. ``round`` in which the arm fell, 0 if it stays. ``shrunk_score``: what routing
    uses. ``eligible``: whether it beats the base on the judging examples beyond ``lift_error``, the half
    width of the one-sided 95 % confidence interval of ``lift``, the mean paired difference to the base.
    ``judged_score``: mean over the ``judged_count`` judging examples. ``likelihood``: mean log-likelihood
    of the target's tokens. None where nothing was measured.
    """

    score: float
    count: int
    standard_error: float
    round: int
    shrunk_score: float
    eligible: bool
    judged_score: float | None
    judged_count: int
    lift: float | None
    lift_error: float
    likelihood: float | None


def choosing_count(examples: int) -> int:
    """Returns how many of a task's examples choose; the others judge. Half, and one example chooses."""
    return max(1, examples // 2)


def mean_and_error(scores: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard error of at least one score in 0..1.

    The error is the sample standard deviation over √n; of 0/1 scores that is √(p(1−p)/(n−1)). One
    score alone has the largest error that a mean in 0..1 can have, 0.5.
    """
    count = len(scores)
    mean = math.fsum(scores) / count
    if count == 1:
        return mean, 0.5
    variance = math.fsum((score - mean) ** 2 for score in scores) / (count - 1)
    return mean, math.sqrt(variance / count)


def lift_and_error(differences: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of at least one paired difference, -1..1, and the half width of its interval.

    One-sided, 95 %, Student's t. The variance starts from pseudo-observations, so that three wins of three
    are neither certain nor worthless.
    """
    count = len(differences)
    mean = math.fsum(differences) / count
    freedom = PRIOR_FREEDOM + count - 1
    squares = math.fsum((difference - mean) ** 2 for difference in differences)
    variance = (PRIOR_FREEDOM * PRIOR_VARIANCE + squares) / freedom
    return mean, _student(freedom) * math.sqrt(variance / count)


def evidence(table: Table, plan: Plan) -> Sequence[Evidence]:
    """Returns the evidence of each of the table's arms, in order, as far as ``plan`` has come."""
    usual = _usual(table)
    base = table.scores[table.base] if table.base >= 0 else np.full(table.scores.shape[1], np.nan)
    base_score = float(np.nanmean(base)) if not np.isnan(base).all() else None
    return [
        _evidence(table, row, base, base_score, usual, int(plan.fell[row]))
        for row in range(len(table.scores))
    ]


def winner(table: Table, plan: Plan) -> int:
    """Returns the row of the adapter that the choosing examples choose; the base's row where none stayed.

    Of the adapters that stay and were measured on most of the choosing examples, that of the best mean;
    ties by likelihood, then by row.
    """
    chosen = table.scores[:, : table.choosing]
    counts = np.where(table.adapters & (plan.fell == 0), (~np.isnan(chosen)).sum(axis=1), 0)
    if counts.max(initial=0) == 0:
        return table.base
    rows = np.flatnonzero(counts == counts.max())
    used = ~np.isnan(chosen[rows[0]])
    order = best_first(
        np.nan_to_num(chosen[rows][:, used]), table.likelihoods[rows, : table.choosing][:, used]
    )
    return int(rows[order[0]])


def _evidence(
    table: Table, row: int, base: Floats, base_score: float | None, usual: float, fell: int
) -> Evidence:
    scores = table.scores[row]
    known = scores[~np.isnan(scores)]
    likelihoods = table.likelihoods[row][~np.isnan(table.likelihoods[row])]
    score, error = mean_and_error(known.tolist()) if len(known) else (0.0, 0.5)
    judging = scores[table.choosing :]
    judged = judging[~np.isnan(judging)]
    differences = judging - base[table.choosing :]
    differences = differences[~np.isnan(differences)]
    is_base = row == table.base
    lift, lift_error = None, 0.0
    if len(differences) and not is_base:
        lift, lift_error = lift_and_error(differences.tolist())
    eligible = not is_base and (base_score is None or (lift is not None and lift > lift_error))
    shrunk = (score * len(known) + usual * PRIOR_COUNT) / (len(known) + PRIOR_COUNT)
    if is_base:
        shrunk = score
    elif not eligible and base_score is not None:
        shrunk = min(shrunk, base_score)
    return Evidence(
        score=score,
        count=len(known),
        standard_error=error,
        round=fell,
        shrunk_score=shrunk,
        eligible=eligible,
        judged_score=float(judged.mean()) if len(judged) else None,
        judged_count=len(judged),
        lift=lift,
        lift_error=lift_error,
        likelihood=float(np.maximum(likelihoods, LEAST_LIKELIHOOD).mean()) if len(likelihoods) else None,
    )


def _usual(table: Table) -> float:
    """Returns the mean score of the adapters on the first example, which all were measured on; or 0."""
    first = table.scores[table.adapters, :1]
    return float(np.nanmean(first)) if not np.isnan(first).all() else 0.0


def _student(freedom: float) -> float:
    """Returns the 95 % quantile of Student's t: expanded; within 2 % from 2 degrees on."""
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
