"""Replays matching strategies on FLAN: 48 real adapters' scores on 48 tasks, drawn example by example."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks.flan import Flan, Floats, read_flan
from benchmarks.flan_pools import REGIMES
from benchmarks.routed import RoutedFlan
from benchmarks.runs import run_strategy
from lorauter.matching import Strategy, Table, evidence, strategy
from lorauter.matching.strategies.default import DefaultStrategy
from lorauter.matching.strategies.paper import PaperStrategy

EXAMPLES = 200
"""Examples of a task, as many as the paper's; all of them choose, since the true scores judge."""

CORRELATIONS = (0.5, 0.0)
"""Correlations of the normal variables behind two adapters' outcomes on one example; the first is shown."""

SEEDS = 100
CURVE_SEEDS = 10

PUBLISHED = {"3618": 1.0150, "972": 0.9922, "468": 0.9628, "9600": 1.0153}
"""The paper's evaluations a task, and its score as a share of the aligned adapter's."""

STRATEGIES = ("exhaustive", "paper", "default")

CURVE: Mapping[str, Strategy] = {
    **{f"paper b={b}": PaperStrategy(b / EXAMPLES) for b in (2, 4, 15)},
    **{
        f"kept {kept}, search {search:g}, confidence {confidence:g}": DefaultStrategy(
            kept=kept, search=search, confidence=confidence
        )
        for kept, search in ((1, 0.6), (2, 0.6), (3, 0.6), (3, 1.2), (5, 0.6), (5, 1.2), (10, 0.3), (10, 0.6))
        for confidence in (0.75, 0.99)
    },
}
"""Settings whose evaluations and regret are shown beside each other."""


def replay(directory: Path, seeds: int = SEEDS, cache: Path | None = None) -> dict[str, Any]:
    """Returns what strategies cost and lose on the FLAN data in ``directory``, and what routing makes of it.

    Scores are drawn as right or wrong with the real mean; two adapters' outcomes on an example share its
    difficulty (a Gaussian copula; ``correlation`` tells what it comes to). ``regret`` is the best adapter's
    true score less the chosen one's, ``relative`` the chosen one's as a share of the aligned adapter's, both
    means over tasks and draws; ``worst_regret`` is of the worst task. ``routed`` is in % of Oracle, the mean
    over all draws, and ``routed_less_exhaustive`` says how much more that is than with everything measured.
    ``cache`` is a directory for the encoder's vectors.
    """
    begun = time.process_time()
    flan = read_flan(directory)
    strategies = {name: strategy(name) for name in STRATEGIES}
    found = {rho: _figures(flan, strategies, rho, range(seeds)) for rho in CORRELATIONS}
    for figures in found.values():
        _add_random(flan, figures)
    shown = found[CORRELATIONS[0]]
    return {
        **{key: {name: figures[key] for name, figures in shown.items()} for key in shown["paper"]},
        "correlation": {f"{rho:g}": _realised(flan, rho) for rho in CORRELATIONS},
        "by_correlation": {f"{rho:g}": figures for rho, figures in found.items()},
        "curve": {
            f"{rho:g}": _figures(flan, CURVE, rho, range(min(seeds, CURVE_SEEDS))) for rho in CORRELATIONS
        },
        "published_relative": PUBLISHED,
        **_routed(flan, strategies, range(seeds), cache),
        "seeds": seeds,
        "seconds": time.process_time() - begun,
    }


def draws(flan: Flan, rho: float, seed: int) -> Iterator[Table]:
    """Yields one table for each task; ``rho`` correlates the normal variables behind shared examples."""
    random = np.random.default_rng([seed, round(100 * rho)])
    for thresholds in _thresholds(flan):
        count = len(thresholds)
        difficulty = random.standard_normal((1, EXAMPLES), dtype=np.float32)
        own = random.standard_normal((count, EXAMPLES), dtype=np.float32)
        values = np.sqrt(np.float32(rho)) * difficulty + np.sqrt(np.float32(1 - rho)) * own
        scores = (values < thresholds[:, None]).astype(np.float64)
        yield Table(scores, np.full_like(scores, np.nan), choosing=EXAMPLES, base=-1)


def _thresholds(flan: Flan) -> Floats:
    quantile = np.vectorize(lambda p: NormalDist().inv_cdf(p) if 0 < p < 1 else np.copysign(np.inf, p - 0.5))
    thresholds: Floats = quantile(flan.affinity)
    return thresholds


def _figures(
    flan: Flan, strategies: Mapping[str, Strategy], rho: float, seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Returns {strategy: {evaluations, regret, worst_regret, relative}}, all strategies on the same draws."""
    cost = dict.fromkeys(strategies, 0)
    had = {name: np.zeros((len(seeds), len(flan.tasks))) for name in strategies}
    for place, seed in enumerate(seeds):
        for row, truth in enumerate(draws(flan, rho, seed)):
            for name, planner in strategies.items():
                run = run_strategy(planner, truth)
                cost[name] += run.choosing
                had[name][place, row] = flan.affinity[row, run.chosen]
    runs = len(seeds) * len(flan.tasks)
    return {name: {"evaluations": cost[name] / runs, **_outcome(flan, had[name])} for name in strategies}


def _outcome(flan: Flan, had: Floats) -> dict[str, float]:
    lost = flan.affinity.max(axis=1) - had
    return {
        "regret": float(lost.mean()),
        "worst_regret": float(lost.mean(axis=0).max()),
        "relative": float((had / np.diag(flan.affinity)).mean()),
    }


def _add_random(flan: Flan, figures: dict[str, dict[str, float]]) -> None:
    """Adds the expectation of an adapter drawn at random."""
    figures["random"] = {"evaluations": 0.0, **_outcome(flan, flan.affinity.mean(axis=1)[None])}


def _realised(flan: Flan, rho: float) -> float:
    """Returns the mean correlation of two adapters' outcomes on an example, over tasks."""
    found = []
    for table in draws(flan, rho, seed=0):
        varied = table.scores[table.scores.std(axis=1) > 0]
        matrix = np.corrcoef(varied)
        found.append(float(matrix[np.triu_indices(len(matrix), 1)].mean()))
    return float(np.mean(found))


def _routed(
    flan: Flan, strategies: Mapping[str, Strategy], seeds: Sequence[int], cache: Path | None
) -> dict[str, dict[str, Any]]:
    """Returns {strategy: {regime: % of Oracle}}, routing on what each strategy measured.

    Beside it the mean difference to `exhaustive` on the same draws, with its standard error.
    """
    router = RoutedFlan(flan, cache)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in strategies}
    for seed in seeds:
        tables = list(draws(flan, CORRELATIONS[0], seed))
        for name, planner in strategies.items():
            runs = [run_strategy(planner, truth) for truth in tables]
            found[name].append(router.percent_of_oracle([evidence(run.table, run.plan) for run in runs]))
    by_regime = {
        name: {regime: np.array([each[regime] for each in scores]) for regime in REGIMES}
        for name, scores in found.items()
    }
    means = {
        name: {regime: float(values.mean()) for regime, values in scores.items()}
        for name, scores in by_regime.items()
    }
    less = {
        name: {
            regime: _mean_and_error(scores[regime] - by_regime["exhaustive"][regime]) for regime in REGIMES
        }
        for name, scores in by_regime.items()
        if name != "exhaustive"
    }
    return {"routed": {**means, "random": router.of_random()}, "routed_less_exhaustive": less}


def _mean_and_error(differences: Floats) -> dict[str, float]:
    error = float(differences.std(ddof=1)) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return {"difference": float(differences.mean()), "standard_error": error}
