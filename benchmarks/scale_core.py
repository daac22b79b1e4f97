"""What grows with tasks and adapters, measured in this process on synthetic pools."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from benchmarks.refitting import EXAMPLES, pool, synthetic
from benchmarks.runs import run_strategy
from lorauter.index.codec import encode
from lorauter.matching import Table, strategy
from lorauter.routing import compile_pool, decide
from lorauter.routing.fitting import Memory, TaskExamples, refit
from lorauter.routing.model import Adapter, Pool, Snapshot
from lorauter.routing.strategies.strategy import Query

DECISIONS = 200
CHOOSING, JUDGING = 32, 32
GOOD = 0.02
"""Share of a synthetic pool's adapters that a task gains from."""

T = TypeVar("T")
Figures = dict[str, float]


def of_tasks(count: int, seed: int) -> Figures:
    """Measures a pool of so many tasks, ten of 200 adapters measured on each.

    Returns seconds of a refit, in full and after one task more, of making the index's points and of laying
    the pool out for decisions; milliseconds of a decision, encoding apart; bytes of the index's points and of
    what a router holds.
    """
    tasks = synthetic(count + 1, seed)
    memory = Memory()
    full, first = _timed(lambda: refit(tasks[:-1], None, memory))
    more, second = _timed(lambda: refit(tasks, first.profile, memory))
    made = pool(tasks, second.profile, seed)
    return {
        "refit_seconds": full,
        "refit_one_more_seconds": more,
        "points": float((count + 1) * (1 + EXAMPLES) + 3),
        **_of_pool(made, tasks),
    }


def of_adapters(count: int, tasks: int, seed: int) -> Figures:
    """Measures a pool of so many adapters, ten of them measured on each of some tasks; see of_tasks()."""
    examples = synthetic(tasks, seed)
    profile = refit(examples, None, Memory()).profile
    return _of_pool(_with_adapters(pool(examples, profile, seed), count), examples)


def of_matching(count: int, seed: int) -> Figures:
    """Returns evaluations of one task's matching by ``default`` and by ``exhaustive``, for an adapter.

    Scores are 0 or 1: a few adapters are right most of the time, most of them as seldom as the base.
    """
    random = np.random.default_rng(seed)
    skill = np.where(random.random(count + 1) < GOOD, random.uniform(0.5, 0.95, count + 1), 0.1)
    skill[-1] = 0.1
    truth = (random.random((count + 1, CHOOSING + JUDGING)) < skill[:, None]).astype(np.float64)
    likelihoods = np.log(skill)[:, None] + 0.3 * random.standard_normal(truth.shape)
    table = Table(truth, np.minimum(likelihoods, 0.0), CHOOSING, count)
    seconds, run = _timed(lambda: run_strategy(strategy("default"), table))
    return {
        "evaluations_per_adapter": (run.choosing + run.judging) / count,
        "exhaustive_per_adapter": float(CHOOSING),
        "planning_seconds": seconds,
    }


def _of_pool(made: Pool, tasks: list[TaskExamples]) -> Figures:
    snapshot = Snapshot("t", 1, "", "e", {made.pool_id: made})
    encoding, tree = _timed(lambda: encode(snapshot))
    compiling, compiled = _timed(lambda: compile_pool(made))
    asked = [tasks[number % len(tasks)] for number in range(DECISIONS)]
    chosen = [Query(task.vectors[0], terms=task.terms[0]) for task in asked]
    decide(compiled, chosen[0])
    deciding, _ = _timed(lambda: [decide(compiled, query) for query in chosen])
    root = len(json.dumps(tree.root, separators=(",", ":")))
    points = sum(
        len(json.dumps(point.payload, separators=(",", ":"))) + 4 * len(point.centroid) + 8 * len(point.terms)
        for point in tree.tasks.values()
    )
    return {
        "encode_seconds": encoding,
        "compile_seconds": compiling,
        "decision_ms": 1e3 * deciding / len(chosen),
        "root_bytes": float(root),
        "task_point_bytes": float(points),
        "router_bytes": float(deep_bytes(compiled)),
    }


def _with_adapters(made: Pool, count: int) -> Pool:
    known = list(made.adapters)[:count]
    names = [f"adapter-{number:06}" for number in range(count - len(known))]
    digests = (f"sha256:{number:064x}" for number in range(len(names)))
    more = [Adapter(name, 1, digest, True) for name, digest in zip(names, digests, strict=True)]
    return dataclasses.replace(made, adapters=(*known, *more))


def deep_bytes(value: object) -> int:
    """Returns the memory of an object and all that it holds, each object once: arrays by their data."""
    seen: set[int] = set()
    waiting: list[object] = [value]
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            if one.base is not None:
                waiting.append(one.base)
            total += sys.getsizeof(one)
            continue
        total += sys.getsizeof(one)
        waiting.extend(_inside(one))
    return total


def _inside(one: object) -> list[Any]:
    if isinstance(one, Mapping):
        return [*one.keys(), *one.values()]
    if isinstance(one, (list, tuple, set, frozenset)):
        return list(one)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return [getattr(one, field.name) for field in dataclasses.fields(one)]
    return list(getattr(one, "__dict__", {}).values())


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Returns processor seconds of this process, which others' work changes less than the clock's."""
    began = time.process_time()
    done = work()
    return time.process_time() - began, done
