"""Runs a matching strategy on a table that is known in full: it gets to see the cells that it asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorauter.matching import Plan, Strategy, Table, winner
from lorauter.matching.strategies.default import DefaultStrategy

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """How a matching went: what it measured, and whom it chose.

    ``choosing`` and ``judging`` count evaluations, the base's included, on examples of each kind.
    ``chosen`` is a row of the table.
    """

    table: Table
    plan: Plan
    choosing: int
    judging: int
    chosen: int


def run_strategy(strategy: Strategy, truth: Table, known: Table | None = None) -> Run:
    """Matches ``truth``, where all is known, starting from what ``known`` has measured of it, or nothing.

    Only ``default`` breaks ties by likelihood; the others choose as published, by score and order alone.
    Only what was not known before is counted. A cell gives score and likelihood at once.
    """
    scores = np.full_like(truth.scores, np.nan) if known is None else known.scores.copy()
    likelihoods = np.full_like(truth.scores, np.nan) if known is None else known.likelihoods.copy()
    seen = ~np.isnan(scores)
    table = Table(scores, likelihoods, truth.choosing, truth.base, truth.likelihood_first)
    while not (plan := strategy.plan(table)).is_done:
        scores[plan.cells] = truth.scores[plan.cells]
        likelihoods[plan.cells] = truth.likelihoods[plan.cells]
    new = ~np.isnan(scores) & ~seen
    return Run(
        table=table,
        plan=plan,
        choosing=int(new[:, : truth.choosing].sum()),
        judging=int(new[:, truth.choosing :].sum()),
        chosen=winner(table, plan, by_likelihood=isinstance(strategy, DefaultStrategy)),
    )


def regret(truth: Table, chosen: int) -> float:
    """Returns the best arm's mean on the judging examples less the chosen one's: 0..1."""
    means = truth.scores[:, truth.choosing :].mean(axis=1)
    return float(means.max() - means[chosen])
