"""Strategy ``default``: few examples for many, many for the ten best."""

from __future__ import annotations

import numpy as np

from lorauter.matching.model import Floats, Mask, Plan, Table
from lorauter.matching.ranking import best_first
from lorauter.matching.rounds import Rounds, plan_rounds

KEPT = 10
"""Adapters that are measured on every example: routing by expected utility uses about the best ten."""

FIRST = 2
"""Examples on which every adapter is measured."""

SHRINK = 4
"""Each round leaves one adapter in so many."""


class DefaultStrategy:
    """Quarters the adapters while it doubles the examples; ties go by likelihood."""

    name = "default"

    def plan(self, table: Table, arms: Mask | None = None) -> Plan:
        """See Strategy."""
        ends: list[int] = []
        most: list[int] = []
        count, end = int(table.adapters.sum()), min(FIRST, table.choosing)
        while count > KEPT and (not ends or end > ends[-1]):
            count = max(KEPT, -(-count // SHRINK))
            ends.append(end)
            most.append(count)
            end = min(2 * end, table.choosing)
        if most:
            most[-1] = KEPT
        rounds = Rounds(tuple(ends), tuple(most), _best, rest=0, screens=table.likelihood_first)
        return plan_rounds(table, arms, rounds)


def _best(scores: Floats, likelihoods: Floats, most: int) -> Mask:
    stays = np.zeros(len(scores), dtype=bool)
    stays[best_first(scores, likelihoods)[:most]] = True
    return stays
