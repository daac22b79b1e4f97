"""What routing makes of measured affinities: the expected score of the best single adapter, by regime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.flan import Flan, Floats
from benchmarks.flan_pools import REGIMES, FlanPools, embedded
from lorauter.matching import Evidence

Matrix = Sequence[Sequence[Evidence]]
"""By task, then by adapter: what a matching found; a count of 0 means not measured."""


class RoutedFlan:
    """Routes FLAN's queries by expected utility: the project's posterior over tasks, times what was measured.

    Each query goes to the adapter a of the largest Σ p(t | query) R[t, a], R being a task's scores as shares
    of its best. The posterior does not depend on what was measured, so it is taken once.
    """

    def __init__(self, flan: Flan, cache: Path | None = None) -> None:
        """Encodes all inputs, which takes a minute or more, unless the directory ``cache`` holds them."""
        self._flan = flan
        self._pools = FlanPools(flan, embedded(flan, cache))
        self._posteriors = {regime: self._posterior(regime) for regime in REGIMES}

    def percent_of_oracle(self, matrix: Matrix) -> dict[str, float]:
        """Returns {regime: % of Oracle} of the best single adapter; see FlanPools for the regimes."""
        worth = np.array([[each.shrunk_score if each.count else 0.0 for each in row] for row in matrix])
        best = worth.max(axis=1, keepdims=True)
        shares = np.divide(worth, best, out=np.zeros_like(worth), where=best > 0)
        return {regime: self._score(shares, regime) for regime in REGIMES}

    def of_random(self) -> dict[str, float]:
        """Returns the same for an adapter drawn at random of those that are not barred: its expectation."""
        return {
            regime: self._flan.percent_of_oracle(random_scores(self._pools, regime)) for regime in REGIMES
        }

    def _score(self, shares: Floats, regime: str) -> float:
        scores = {}
        for row, (name, posterior) in enumerate(zip(self._flan.tasks, self._posteriors[regime], strict=True)):
            utilities = posterior @ shares
            utilities[:, self._pools.barred(row, regime)[1]] = -1.0
            scores[name] = self._flan.affinity[row, utilities.argmax(axis=1)].tolist()
        return self._flan.percent_of_oracle(scores)

    def _posterior(self, regime: str) -> list[Floats]:
        """Returns by task (queries, tasks), the probabilities that the project's decisions give."""
        columns = {name: column for column, name in enumerate(self._flan.tasks)}
        found = []
        for _, decisions in self._pools.decisions(regime, "default"):
            posterior = np.zeros((len(decisions), len(columns)))
            for place, decision in enumerate(decisions):
                for match in decision.tasks:
                    posterior[place, columns[match.task_id]] = match.probability
            found.append(posterior)
        return found


def random_scores(pools: FlanPools, regime: str) -> dict[str, list[float]]:
    """Returns the expected score of an adapter drawn at random for each query, by task."""
    flan = pools.flan
    return {
        name: [float(flan.affinity[row, ~pools.barred(row, regime)[1]].mean())] * len(flan.queries[name])
        for row, name in enumerate(flan.tasks)
    }
