"""Strategy ``paper``: successive halving as published with LORAUTER (arXiv:2601.21795)."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from lorauter.matching.model import Floats, Mask, Plan, Table
from lorauter.matching.rounds import Rounds, plan_rounds

ROUND_WEIGHTS = (2.5, 2.25, 3.375, 5.0625)
"""New examples of a round, in units of b: survivors 48, 24, 12, 6 of 48."""

UNITS_PER_EXAMPLE = 15 / 200
"""b for each choosing example: the published b = 15 for 200 examples, 3,618 evaluations for 48 adapters."""

LARGE_POOL = 200
"""Adapters beyond which the rule for the pool of 1,567 holds."""

FIRST_OF_LARGE = 20
STAY_OF_LARGE = 50
"""Of a large pool: examples for every adapter, and adapters that are measured on all choosing examples."""

JUDGED = 10
"""Adapters that are measured on the judging examples, which the paper does not have: what routing uses."""


class PaperStrategy:
    """Cumulative means, non-overlapping examples; half of the adapters stay after each of four rounds.

    Beyond 200 adapters: 20 examples for each, then the best 50 on all choosing examples. Ties stay in the
    table's order.
    """

    name = "paper"

    def __init__(self, units_per_example: float = UNITS_PER_EXAMPLE) -> None:
        """``units_per_example`` times the number of choosing examples is the schedule's b."""
        self._units = units_per_example

    def plan(self, table: Table, arms: Mask | None = None) -> Plan:
        """See Strategy."""
        count = int(table.adapters.sum())
        if count > LARGE_POOL:
            ends: tuple[int, ...] = (min(FIRST_OF_LARGE, table.choosing), table.choosing)
            most: tuple[int, ...] = (STAY_OF_LARGE, JUDGED)
        else:
            ends = _ends(self._units * table.choosing, table.choosing)
            most = (*(-(-count // 2**number) for number in range(1, len(ends))), JUDGED)
        return plan_rounds(table, arms, Rounds(ends, most, best, rest=table.choosing))


def best(scores: Floats, likelihoods: Floats, most: int) -> Mask:
    """Says which are the ``most`` rows of the largest mean score, ties in the table's order."""
    stays = np.zeros(len(scores), dtype=bool)
    stays[np.argsort(-scores.mean(axis=1).round(9), kind="stable")[:most]] = True
    return stays


def _ends(units: float, choosing: int) -> tuple[int, ...]:
    """Returns the examples seen by the end of each round, at least one new one each, while they last."""
    sizes = [max(1, int(units * weight)) for weight in ROUND_WEIGHTS]
    return tuple(sorted({min(end, choosing) for end in accumulate(sizes)}))
