"""What a matching found: each arm's affinity with its evidence, and the adapter that was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorauter.matching.model import Floats, Integers, Plan, Table
from lorauter.matching.paired import standard_errors
from lorauter.matching.ranking import best_first, tied_first
from lorauter.matching.shrinking import Usual, usual_scores

LEAST_LIKELIHOOD = -50.0
"""What a lower log-likelihood of a token counts as: it is nil either way, and -inf has no mean."""

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
    of the target's tokens. ``place`` among those that stay, by the choosing examples alone, from 1; 0 if it
    fell. None where nothing was measured.
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
    place: int


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


def lift_and_error(differences: Floats) -> tuple[float, float]:
    """Returns the mean of (m,) paired differences, -1..1, m ≥ 1, and the half width of its interval.

    One-sided, 95 %, Student's t on the errors of lorauter.matching.paired.
    """
    errors, freedom = standard_errors(differences[None])
    return float(differences.mean()), _student(freedom) * float(errors[0])


def evidence(table: Table, plan: Plan) -> Sequence[Evidence]:
    """Returns the evidence of each of the table's arms, in order, as far as ``plan`` has come.

    Without a base (``table.base`` is -1) there is nothing to beat: all adapters count as eligible.
    """
    base = table.scores[table.base] if table.base >= 0 else None
    usual, found = usual_scores(table), places(table, plan)
    return [
        _base_evidence(table)
        if row == table.base
        else _evidence(table, row, base, usual, int(plan.fell[row]), int(found[row]))
        for row in range(len(table.scores))
    ]


def places(table: Table, plan: Plan, by_likelihood: bool = True) -> Integers:
    """Returns int64 (A,), the place of each adapter that stays by the choosing examples, 1 for the winner.

    0 for the base and for those that fell or were not measured. They are compared on the examples that all
    of them were measured on; whoever ties with the best stands by likelihood where it is known of all, unless
    ``by_likelihood`` is false. See ``eligible`` for whether a winner is any use.
    """
    found = np.zeros(len(table.scores), dtype=np.int64)
    chosen = table.scores[:, : table.choosing]
    rows = np.flatnonzero(table.adapters & (plan.fell == 0) & ~np.isnan(chosen).all(axis=1))
    if len(rows) == 0:
        return found
    shared = ~np.isnan(chosen[rows]).any(axis=0)
    likelihoods = table.likelihoods[rows, : table.choosing][:, shared]
    if not by_likelihood:
        likelihoods = np.full_like(likelihoods, np.nan)
    order = best_first if np.isnan(likelihoods).any() else tied_first
    found[rows[order(chosen[rows][:, shared], likelihoods)]] = np.arange(1, len(rows) + 1)
    return found


def winner(table: Table, plan: Plan, by_likelihood: bool = True) -> int:
    """Returns the row of the adapter in first place, see places(); the base's row where none stayed."""
    first = np.flatnonzero(places(table, plan, by_likelihood) == 1)
    return int(first[0]) if len(first) else table.base


def _base_evidence(table: Table) -> Evidence:
    """Returns the base's evidence: nothing draws its score, and it does not beat itself."""
    scores, likelihoods = table.scores[table.base], table.likelihoods[table.base]
    score, count, error = _summary(scores)
    judged_score, judged_count, _ = _summary(scores[table.choosing :])
    return Evidence(
        score=score,
        count=count,
        standard_error=error,
        round=0,
        shrunk_score=score,
        eligible=False,
        judged_score=judged_score if judged_count else None,
        judged_count=judged_count,
        lift=None,
        lift_error=0.0,
        likelihood=_likelihood(likelihoods),
        place=0,
    )


def _evidence(table: Table, row: int, base: Floats | None, usual: Usual, fell: int, place: int) -> Evidence:
    scores = table.scores[row]
    score, count, error = _summary(scores)
    judged_score, judged_count, _ = _summary(scores[table.choosing :])
    lift, lift_error, eligible = None, 0.0, base is None and count > 0
    shrunk = (count * score + usual.weight * usual.score) / (count + usual.weight)
    if base is not None:
        differences = (scores - base)[table.choosing :]
        differences = differences[~np.isnan(differences)]
        if len(differences):
            lift, lift_error = lift_and_error(differences)
            eligible = lift > lift_error
        if not eligible:
            shrunk = min(shrunk, _summary(base)[0])
    return Evidence(
        score=score,
        count=count,
        standard_error=error,
        round=fell,
        shrunk_score=shrunk,
        eligible=eligible,
        judged_score=judged_score if judged_count else None,
        judged_count=judged_count,
        lift=lift,
        lift_error=lift_error,
        likelihood=_likelihood(table.likelihoods[row]),
        place=place,
    )


def _summary(scores: Floats) -> tuple[float, int, float]:
    """Returns mean, count and standard error of the scores that are known."""
    known = scores[~np.isnan(scores)]
    if len(known) == 0:
        return 0.0, 0, 0.5
    mean, error = mean_and_error(known.tolist())
    return mean, len(known), error


def _likelihood(likelihoods: Floats) -> float | None:
    known = likelihoods[~np.isnan(likelihoods)]
    return float(np.maximum(known, LEAST_LIKELIHOOD).mean()) if len(known) else None


def _student(freedom: float) -> float:
    """Returns the 95 % quantile of Student's t: expanded; within 2 % from 2 degrees on."""
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
