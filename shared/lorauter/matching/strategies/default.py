"""Strategy ``default``: few examples for many, many for the ten best. Why so: docs/decisions/0006."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lorauter.matching.model import Floats, Mask, Plan, Table
from lorauter.matching.paired import standard_errors
from lorauter.matching.ranking import best_first
from lorauter.matching.rounds import Rounds, plan_rounds

KEPT = 10
"""Adapters that are measured on every example: routing by expected utility needs about the ten best."""

CONFIDENCE = 0.99
"""One-sided, of each comparison by which an adapter falls although its round has room for it."""

SEARCH = 0.7
"""What the first round may cost, as a share of measuring the kept ones on all choosing examples.

At 0.6, 48 adapters lose no more than by the paper's schedule, whose regret a larger share hardly lowers.
"""

FIRST = 2
"""Examples of the first round at least. One finds the adapters of a noisy pool too, but a single example
that happens to be easy, or hard, for all then decides about hundreds."""

FIRST_BY_SCORE = 4
"""Examples before any adapter falls where no likelihood is known: two scores that are right or wrong cannot
tell hundreds of adapters apart."""


@dataclass(frozen=True, slots=True)
class DefaultStrategy:
    """Races the adapters on shared examples until the ``kept`` best are left, and measures those on all.

    Every round doubles the examples. After it, an adapter falls if the paired differences show it worse than
    the last of the kept ones with ``confidence``; and beyond the better half, or beyond what makes the next
    round cost more than measuring the kept ones on all choosing examples, it falls anyway. Equal mean scores
    are ranked by likelihood. Where scores need generation, the first round asks for likelihoods alone.
    """

    kept: int = KEPT
    confidence: float = CONFIDENCE
    search: float = SEARCH
    name: str = "default"

    def plan(self, table: Table, arms: Mask | None = None) -> Plan:
        """See Strategy."""
        return plan_rounds(table, arms, self._rounds(table))

    def _rounds(self, table: Table) -> Rounds:
        count, choosing = int(table.adapters.sum()), table.choosing
        cost = self.kept * choosing
        end = min(choosing, max(FIRST, round(self.search * cost / max(count, 1))))
        ends: list[int] = []
        most: list[int] = []
        while count > self.kept:
            following = min(2 * end, choosing)
            screened = table.likelihood_first and not ends
            if end == choosing:
                count = self.kept
            elif end >= FIRST_BY_SCORE or not _is_blind(table, end):
                new = following - (0 if screened else end)
                count = max(self.kept, min(math.ceil(count / 2), cost // new))
            ends.append(end)
            most.append(count)
            end = following
        return Rounds(tuple(ends), tuple(most), self._stays, rest=0, screens=table.likelihood_first)

    def _stays(self, scores: Floats, likelihoods: Floats, most: int) -> Mask:
        order = best_first(scores, likelihoods)
        shortfall = scores[order[self.kept - 1]] - scores
        limit = NormalDist().inv_cdf(self.confidence)
        may_belong: Mask = shortfall.mean(axis=1) <= limit * standard_errors(shortfall)[0]
        may_belong[order[: self.kept]] = True
        may_belong[order[most:]] = False
        return may_belong


def _is_blind(table: Table, end: int) -> bool:
    """Returns whether the backend tells no likelihoods, as far as the first examples show."""
    first = np.s_[:, :end]
    return bool(np.isnan(table.likelihoods[first]).all() and not np.isnan(table.scores[first]).all())
