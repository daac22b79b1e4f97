"""Strategies replayed on the measured pool: what they measure, and how good the chosen adapters are."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.runs import Run, regret, run_strategy
from benchmarks.table import EXAMPLES, MeasuredPool, load_pool_table
from lorauter.matching import Strategy, Table, strategy

CHOOSING = EXAMPLES // 2
"""Examples that choose; the other half judges."""

NAMES = ("exhaustive", "paper", "default")
"""Strategies that are run; `random` needs no run."""

NEAR_BASE = 0.05
"""An adapter whose mean over all examples is at most this far above the base's is bad at the task."""

MATCHED = 1500
"""Adapters of the pool that one more joins."""

JOINING = 3
"""Adapters that join, one at a time, for each task and order: the best of those left out, and others."""


@dataclass(frozen=True, slots=True)
class Result:
    """One run on one task: evaluations on choosing and judging examples, and the regret."""

    pool: str
    name: str
    task: int
    order: int
    choosing: float
    judging: float
    regret: float


def replay_all(
    path: Path, orders: int, seed: int, others: Mapping[str, Strategy], advance: Callable[[], None]
) -> tuple[list[Result], list[float]]:
    """Replays every strategy on every task in ``orders`` orders of examples, in the easy and the hard pool.

    In each order adapters and examples are shuffled anew, so that other examples choose, and others judge.
    Returns the results, ``others`` included, and what one joining adapter costs as shares of full matches.
    """
    jobs = [(path, seed, order, dict(others)) for order in range(orders)]
    results: list[Result] = []
    shares: list[float] = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for found, joined in pool.imap_unordered(_one_order, jobs):
            results += found
            shares += joined
            advance()
        pool.close()
        pool.join()
    return results, shares


def figures(results: Iterable[Result], pool: str) -> dict[str, dict[str, float]]:
    """Means over orders, by strategy: evaluations of a task on choosing examples, mean and worst regret.

    ``worst_regret`` is that of the task with the worst mean, ``worst_run_regret`` that of the worst run.
    """
    by_name: dict[str, list[Result]] = {}
    for result in results:
        if result.pool == pool:
            by_name.setdefault(result.name, []).append(result)
    return {name: _summary(rows) for name, rows in by_name.items()}


def paired(results: Sequence[Result], pool: str, name: str, other: str) -> dict[str, float]:
    """How much more regret ``name`` has than ``other`` on the same tasks in the same orders, with its error.

    ``difference`` is of the means over tasks, ``worst_difference`` at the task that is worst for ``name``;
    the standard errors are over orders.
    """
    rows = {(one.name, one.task, one.order): one.regret for one in results if one.pool == pool}
    tasks, orders = sorted({task for _, task, _ in rows}), sorted({order for *_, order in rows})
    ours, theirs = (
        np.array([[rows[which, task, order] for order in orders] for task in tasks])
        for which in (name, other)
    )
    worst = int(ours.mean(axis=1).argmax())
    found = {}
    for prefix, values in (("", (ours - theirs).mean(axis=0)), ("worst_", (ours - theirs)[worst])):
        error = float(values.std(ddof=1)) / len(orders) ** 0.5 if len(orders) > 1 else 0.0
        found[f"{prefix}difference"] = round(float(values.mean()), 5)
        found[f"{prefix}standard_error"] = round(error, 5)
    return found


def _summary(rows: Sequence[Result]) -> dict[str, float]:
    by_task: dict[int, list[float]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row.regret)
    means = [float(np.mean(regrets)) for regrets in by_task.values()]
    return {
        "evaluations": round(float(np.mean([row.choosing for row in rows])), 1),
        "mean_regret": round(float(np.mean(means)), 5),
        "worst_regret": round(max(means), 5),
        "worst_run_regret": round(max(row.regret for row in rows), 5),
        "judging_evaluations": round(float(np.mean([row.judging for row in rows])), 1),
    }


def _one_order(job: tuple[Path, int, int, dict[str, Strategy]]) -> tuple[list[Result], list[float]]:
    path, seed, order, others = job
    measured = load_pool_table(path)
    strategies = {name: strategy(name) for name in NAMES} | others
    results: list[Result] = []
    shares: list[float] = []
    for task in range(len(measured.tasks)):
        rng = np.random.default_rng([seed, order, task])
        easy = shuffled(measured, task, rng)
        for pool, truth in (("easy", easy), ("hard", hardened(easy, rng))):
            for name, chosen in strategies.items():
                run = run_strategy(chosen, truth)
                row = (run.choosing, run.judging, regret(truth, run.chosen))
                results.append(Result(pool, name, task, order, *row))
            results.append(Result(pool, "random", task, order, 0, 0, _blind_regret(truth)))
        shares += joining(easy, strategies["default"], rng)
    return results, shares


def shuffled(measured: MeasuredPool, task: int, rng: np.random.Generator) -> Table:
    """Returns a task's table with adapters and examples in an order of their own; the base comes last."""
    rows = np.append(rng.permutation(measured.base), measured.base)
    columns = rng.permutation(measured.scores.shape[2])
    cells = np.ix_(rows, columns)
    return Table(measured.scores[task][cells], measured.likelihoods[task][cells], CHOOSING, measured.base)


def hardened(truth: Table, rng: np.random.Generator) -> Table:
    """Returns the table of a pool in which one adapter is any good at the task: the best over all examples.

    Every other that is better than bad (NEAR_BASE) is replaced by a bad one, drawn at random.
    """
    means = truth.scores.mean(axis=1)
    bad = np.flatnonzero((means <= means[truth.base] + NEAR_BASE) & truth.adapters)
    rows = np.arange(len(means))
    better = (means > means[truth.base] + NEAR_BASE) & truth.adapters
    better[np.argmax(np.where(truth.adapters, means, -1.0))] = False
    rows[better] = rng.choice(bad, int(better.sum()))
    return Table(truth.scores[rows], truth.likelihoods[rows], truth.choosing, truth.base)


def joining(truth: Table, chosen: Strategy, rng: np.random.Generator) -> list[float]:
    """Returns the evaluations of matching one adapter more, as shares of those of matching all MATCHED.

    The best of the adapters that were left out joins, and JOINING - 1 others; the pool is matched before
    each. All evaluations count, those on judging examples too.
    """
    adapters = np.flatnonzero(truth.adapters)
    pool, left = adapters[:MATCHED], adapters[MATCHED:]
    full = run_strategy(chosen, _rows(truth, pool))
    best = left[np.argmax(truth.scores[left].mean(axis=1))]
    newcomers = [best, *rng.choice(left[left != best], JOINING - 1, replace=False)]
    return [_joined(truth, chosen, pool, full, newcomer) for newcomer in newcomers]


def _joined(truth: Table, chosen: Strategy, pool: NDArray[np.intp], full: Run, newcomer: int) -> float:
    larger = _rows(truth, np.append(pool, newcomer))
    nothing = np.full((1, truth.scores.shape[1]), np.nan)

    def widened(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([values[:-1], nothing, values[-1:]])

    known = Table(widened(full.table.scores), widened(full.table.likelihoods), larger.choosing, larger.base)
    run = run_strategy(chosen, larger, known)
    return (run.choosing + run.judging) / (full.choosing + full.judging)


def _rows(truth: Table, adapters: NDArray[np.intp]) -> Table:
    """Returns the table of ``adapters`` and the base, which comes last."""
    rows = np.append(adapters, truth.base)
    return Table(truth.scores[rows], truth.likelihoods[rows], truth.choosing, len(rows) - 1)


def _blind_regret(truth: Table) -> float:
    """The expected regret of an adapter drawn at random, with nothing measured."""
    means = truth.scores[:, truth.choosing :].mean(axis=1)
    return float(means.max() - means[truth.adapters].mean())
