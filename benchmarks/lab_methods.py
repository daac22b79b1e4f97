"""What each method serves for each query of a seed, and which answers are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.lab_composing import Composer
from benchmarks.lab_measured import Measured
from benchmarks.lab_pools import REGIMES, Floats, LabPools, Routes, Rows
from lorauter_suite.demo.data import TASKS

STRATEGIES = ("paper", "paper_tuned", "default")
METHODS = (
    "base",
    "constant",
    "own_adapter",
    "best_single",
    "paper",
    "paper_tuned",
    "default",
    "uniform_top3",
    "peft_linear",
    "paper_single",
    "paper_tuned_single",
    "default_single",
)
"""`base`: no adapter. `constant`: the best all-round adapter by validation score, for all queries.
`own_adapter`: the first trained on the query's task, in all regimes. `best_single`: of the arms that the
regime leaves, that of the best score on the queries of the query's task; it looks at the answers. A
strategy's name: the weighted set that the router answers by default, composed exactly; with `_single`: its
best single arm. `uniform_top3`: the set of `paper`, weighted evenly. `peft_linear`: the set and weights of
`paper`, merged."""

Answers = Mapping[str, Mapping[str, Floats]]
"""By regime and method: (T, q), 1 where right."""


def answers(
    measured: Measured,
    own: Sequence[int],
    pools: LabPools,
    composer: Composer,
    advance: Callable[[], None],
) -> tuple[Answers, Mapping[str, Mapping[str, Mapping[str, float]]]]:
    """Returns what each method answers right, and by regime and strategy what is told of its routes.

    ``own`` (T,): the rows of the tasks' own adapters. ``advance`` is called once a regime and strategy.
    """
    found: dict[str, Mapping[str, Floats]] = {}
    told: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for regime in REGIMES:
        routes = {}
        rights = _controls(measured, own, pools, regime)
        for name in STRATEGIES:
            routes[name] = route = pools.routes(regime, name)
            rights[name] = composer.right(route.chosen, route.weights)
            rights[f"{name}_single"] = alone(measured, route.single)
            advance()
        paper = routes["paper"]
        rights["uniform_top3"] = composer.right(paper.chosen, evened(paper.weights))
        rights["peft_linear"] = composer.right(paper.chosen, paper.weights, merged=True)
        found[regime] = {name: rights[name] for name in METHODS}
        told[regime] = {name: described(route) for name, route in routes.items()}
    return found, told


def _controls(measured: Measured, own: Sequence[int], pools: LabPools, regime: str) -> dict[str, Floats]:
    tasks, _, queries = measured.right.shape
    validated, tested = measured.scores.mean(axis=2), measured.right.mean(axis=2)
    constant, best = np.zeros((2, tasks), np.intp)
    for row in range(tasks):
        gone, barred = pools.taken(row, regime)
        left = np.append(~barred, True)
        constant[row] = np.where(~barred, validated[~gone, :-1].mean(axis=0), -1.0).argmax()
        best[row] = np.where(left, tested[row], -1.0).argmax()
    rows = {"base": np.full(tasks, measured.base), "constant": constant, "best_single": best}
    rows["own_adapter"] = np.array(own)
    return {name: alone(measured, np.repeat(arms[:, None], queries, 1)) for name, arms in rows.items()}


def alone(measured: Measured, arms: Rows) -> Floats:
    """Returns (T, q), 1 where the query is answered right by its one arm of ``arms`` (T, q)."""
    return np.take_along_axis(measured.right, arms[:, None, :], axis=1)[:, 0]


def evened(weights: Floats) -> Floats:
    """Returns ``weights`` (..., k) with all that are above 0 made equal, summing to 1."""
    taking_part = (weights > 0).astype(np.float64)
    even: Floats = taking_part / taking_part.sum(axis=-1, keepdims=True)
    return even


def described(route: Routes) -> dict[str, float]:
    """Returns means over queries: arms in the set, its largest weight, and what the first task shares.

    It is the query's own (`right_task`), of its cluster, so that it asks for the same skill (`same_cluster`),
    or of its domain, so that it is about the same kind of thing (`same_domain`).
    """
    clusters, domains = (np.array([getattr(task, key) for task in TASKS]) for key in ("cluster", "domain"))
    own, nearest = np.arange(len(route.nearest))[:, None], route.nearest
    return {
        "arms": float((route.weights > 0).sum(axis=2).mean()),
        "largest_weight": float(route.weights.max(axis=2).mean()),
        "right_task": float((nearest == own).mean()),
        "same_cluster": float((clusters[nearest] == clusters[own]).mean()),
        "same_domain": float((domains[nearest] == domains[own]).mean()),
    }
