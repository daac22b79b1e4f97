"""Arms in order of what they are expected to be worth."""

from __future__ import annotations

import numpy as np

from lorauter.routing.compiled import Arm
from lorauter.routing.decision import MOST_RUNNERS_UP
from lorauter.routing.strategies.strategy import Choice, Mask, Question

_TIE = 1e-12
"""Utilities that differ by less are sums of the same terms in another order."""


def runners_up(question: Question, choice: Choice) -> tuple[tuple[Arm, float], ...]:
    """Returns what else may serve a query where the best single arm cannot, best first, at most 8.

    Those are arms whose utility is known, and the base, which is worth 0 where nothing is known of it; each
    with its expected share of the best score, 0..1.
    """
    arms = choice.known.copy()
    arms[0] = question.arms[0]
    arms[choice.single] = False
    rows = ranked(question, choice, arms, MOST_RUNNERS_UP)
    return tuple((question.pool.arms[row], min(1.0, float(choice.utilities[row]))) for row in rows)


def ranked(question: Question, choice: Choice, arms: Mask, count: int) -> list[int]:
    """Returns the rows of the ``count`` arms of largest utility among ``arms`` (A,), best first.

    Ties go to the base, then to the adapter that bears the likeliest task's name, then in the order of that
    task's affinities, then by row. Sorts no more than it returns, and who is tied by preference.
    """
    utilities = choice.utilities
    preferred = [row for row in _preferred(question, choice) if arms[row]]
    rows = np.flatnonzero(arms)
    if len(rows) > count:
        values = utilities[rows]
        least = np.partition(values, len(rows) - count)[len(rows) - count]
        above, tied = rows[values > least + _TIE], rows[np.abs(values - least) <= _TIE]
        preferred = [row for row in preferred if utilities[row] >= least - _TIE]
        rows = np.concatenate([above, tied[:count]])
    places = {row: place for place, row in reversed(list(enumerate(preferred)))}
    few = list({*rows.tolist(), *preferred})
    worth = dict(zip(few, utilities[few].tolist(), strict=True))
    few.sort(key=lambda row: (-round(worth[row] / _TIE), places.get(row, len(preferred)), row))
    return few[:count]


def _preferred(question: Question, choice: Choice) -> list[int]:
    pool, task = question.pool, int(choice.probabilities.argmax())
    listed = pool.columns[task]
    return [0, *pool.arm_rows.get(pool.tasks[task].task_id, ()), *listed[listed >= 0].tolist()]
