"""The pool's all-round arm: what the policy ALL_ROUND gives to queries unlike all tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lorauter.routing.strategies.strategy import Choice, Floats, Grounds, Question


def mean_shares(question: Question) -> Floats:
    """Returns (A,), each arm's mean share of the best score, over the measured tasks that take part.

    What was not measured on a task counts as 0 there, and so does an arm that takes no part; all are 0 where
    no task was measured.
    """
    columns = question.pool.columns
    measured = (columns >= 0) & question.arms[columns] & question.tasks[:, None]
    count = int(measured.any(axis=1).sum())
    sums = np.bincount(columns[measured], question.pool.shares[measured], minlength=len(question.arms))
    return sums / max(count, 1)


def all_round(question: Question, choice: Choice) -> Choice:
    """Returns ``choice`` with the arm of the largest mean share instead; ties go to the base, then by row.

    The choice stays as it is where no arm is known: then there is none to give.
    """
    if choice.single < 0:
        return choice
    means = mean_shares(question)
    single = int(means.argmax())
    weights = np.zeros(len(means))
    weights[single] = 1.0
    return replace(
        choice,
        weights=weights,
        single=single,
        utilities=means,
        known=means > 0,
        grounds=_evenly(question),
        considered=(),
    )


def _evenly(question: Question) -> Grounds:
    rows = np.flatnonzero(question.tasks & question.measured())
    return Grounds(rows, np.full(len(rows), 1 / max(len(rows), 1)), rows[:0])
