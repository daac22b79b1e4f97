"""How long a refit takes, in full and after one more task: `python -m benchmarks.refitting [--json PATH]`."""

# ruff: noqa: E402  -- numpy reads its number of threads when it is imported: a worker's child has one core
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lorauter.index.codec import encode
from lorauter.routing.bm25 import Terms
from lorauter.routing.churn import churn
from lorauter.routing.fitting import Memory, TaskExamples, refit
from lorauter.routing.model import Adapter, Affinity, Pool, Profile, Snapshot, Task
from lorauter_suite.machine import machine, versions

SIZES = {48: 7, 1_000: 5, 10_000: 1}
"""Tasks, and how often each is measured; medians are told."""

EXAMPLES = 20
DIMENSION = 384
WORDS = 30
"""Words of a text: as many terms of one, two and three words each."""

TEMPLATE = 10
"""Words that the texts of a task share."""

VOCABULARY = 20_000
MEASURED = 10
ADAPTERS = 200

T = TypeVar("T")
Report = dict[str, Any]

console = Console(stderr=True)


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the tasks.")] = 0,
) -> None:
    """Refits synthetic tasks of 20 examples, on one thread; encoding is not in it."""
    started = time.perf_counter()
    report: Report = {"tasks": {str(size): measured(size, seed) for size in SIZES}}
    report |= {"machine": machine(), "versions": versions(), "seed": seed}
    report["seconds"] = round(time.perf_counter() - started, 1)
    _print(report, Console())
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measured(size: int, seed: int) -> Report:
    """Returns medians of {"wall", "cpu"} seconds by step, and the share of known queries that moved.

    ``full`` fits ``size`` tasks that nothing is known of, ``incremental`` one more; ``assembling`` makes the
    points of the index of them; ``churn`` looks at what the one more changed.
    """
    console.print(f"making {size:,} tasks of {EXAMPLES} examples", style="dim")
    tasks = synthetic(size + 1, seed)
    seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def timed(step: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        done = work()
        seconds[step].append((time.perf_counter() - wall, time.process_time() - cpu))
        return done

    for _ in range(SIZES[size]):
        memory = Memory()
        first = timed("full", partial(refit, tasks[:-1], None, memory)).profile
        second = timed("incremental", partial(refit, tasks, first, memory)).profile
        before, after = pool(tasks[:-1], first, seed), pool(tasks, second, seed)
        timed("assembling", partial(encode, Snapshot("t", 1, "", "e", {"p": after})))
        moved = timed("churn", partial(churn, before, after, tasks))
    medians = {step: np.median(each, axis=0).round(4).tolist() for step, each in seconds.items()}
    return {
        "seconds": {step: dict(zip(("wall", "cpu"), pair, strict=True)) for step, pair in medians.items()},
        "churn": moved,
    }


def synthetic(count: int, seed: int) -> list[TaskExamples]:
    """Returns tasks in clusters of twenty: noisy unit vectors, and words of a template, a topic and any."""
    random = np.random.default_rng(seed)
    clusters = random.normal(size=(max(1, count // 20), DIMENSION))
    usual = 1.0 / np.arange(1, VOCABULARY + 1)
    return [
        _task(f"task-{number:05}", clusters[number % len(clusters)], usual / usual.sum(), random)
        for number in range(count)
    ]


def _task(
    name: str, cluster: NDArray[np.float64], usual: NDArray[np.float64], random: np.random.Generator
) -> TaskExamples:
    center = cluster + 0.6 * random.normal(size=DIMENSION)
    vectors = center + 1.2 * random.normal(size=(EXAMPLES, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = random.choice(VOCABULARY, (EXAMPLES, WORDS), p=usual).astype(np.uint32)
    words[:, :TEMPLATE] = words[0, :TEMPLATE]
    pairs = words[:, :-1] * np.uint32(2654435761) + words[:, 1:]
    triples = pairs[:, :-1] * np.uint32(2246822519) + words[:, 2:]
    ids = np.concatenate([words, pairs, triples], axis=1)
    return TaskExamples(name, vectors.astype(np.float32), [_counted(row) for row in ids], _counted(ids))


def _counted(ids: NDArray[np.uint32]) -> Terms:
    distinct, places = np.unique(ids.ravel(), return_inverse=True)
    return Terms(distinct, np.bincount(places).astype(np.float64))


def pool(tasks: Sequence[TaskExamples], profile: Profile, seed: int) -> Pool:
    """Returns a pool in which ten adapters were measured on each task."""
    random = np.random.default_rng(seed)
    scores = np.sort(random.random((len(tasks), MEASURED)), axis=1)[:, ::-1]
    measured_on = [random.choice(ADAPTERS, MEASURED, replace=False) for _ in tasks]
    return Pool(
        pool_id="p",
        base_model="m",
        base_model_aliases=(),
        untypical_policy="ROUTE",
        profile=profile,
        tasks=tuple(map(_known, tasks, measured_on, scores)),
        adapters=tuple(Adapter(f"a{number}", 1, f"sha256:{number}", True) for number in range(ADAPTERS)),
        backends=(),
    )


def _known(task: TaskExamples, adapters: NDArray[np.intp], scores: NDArray[np.float64]) -> Task:
    ranked = zip(adapters.tolist(), scores.tolist(), strict=True)
    return Task(
        task_id=task.task_id,
        version=1,
        metric="exact_match",
        tags=frozenset(),
        example_count=EXAMPLES,
        centroid=task.vectors.mean(axis=0),
        terms=task.total,
        affinities=tuple(Affinity(f"a{adapter}", 1, score, EXAMPLES, 0.1) for adapter, score in ranked),
    )


def _print(report: Report, out: Console) -> None:
    table = Table(title="seconds, wall (CPU), on one thread", title_justify="left", box=None)
    steps = ("full", "incremental", "assembling", "churn")
    for column in ("tasks", *steps, "moved"):
        table.add_column(column, justify="right")
    for size, row in report["tasks"].items():
        cells = [f"{row['seconds'][step]['wall']:.2f} ({row['seconds'][step]['cpu']:.2f})" for step in steps]
        table.add_row(f"{int(size):,}", *cells, f"{100 * row['churn']:.1f} %")
    out.print(table)
    out.print(f"{report['seconds']} s", style="dim")


if __name__ == "__main__":
    typer.run(main)
