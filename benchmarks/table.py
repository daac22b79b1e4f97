"""The table: every adapter of the noisy pool, and the base, on every example of some tasks, measured once."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.meter import Floats, Meter
from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.data import TASKS, Example, task_examples
from lorauter_suite.demo.noisy.recipe import NoisyRecipe, noisy_adapters
from lorauter_suite.demo.noisy.training import trained_stacks
from lorauter_suite.demo.noisy.weights import Workshop
from lorauter_suite.demo.verify import POOL

TASK_IDS = (
    "reverse-word",
    "sort-number",
    "shift-code",
    "upper-name",
    "double-number",
    "count-code",
    "vowels-word",
    "dash-code",
)
"""One task of every cluster."""

EXAMPLES = 64
"""Examples of each task: half of them choose, half judge."""

_VERSION = 1

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredPool:
    """All that can be known of the pool: T tasks, A arms, n examples.

    ``scores`` and ``likelihoods`` are (T, A, n): exact match, and the mean log-likelihood of the target's
    tokens and the end. ``names`` (A,) are the adapters' ids; the last row, ``base``, is the base.
    """

    tasks: tuple[str, ...]
    names: tuple[str, ...]
    scores: Floats
    likelihoods: Floats

    @property
    def base(self) -> int:
        """The base's row."""
        return len(self.names) - 1


def measure_pool(recipe: NoisyRecipe, cache: Path, advance: Advance) -> Path:
    """Returns where the table of the recipe's pool lies in ``cache``; measures it first if it is not there.

    Two processes measure, each on one core. ``advance`` gets the number of arms measured so far. The
    trainings must be in ``cache``.
    """
    path = cache / f"table-{_digest(recipe)}.npz"
    if path.exists():
        return path
    names = [*(adapter.id for adapter in noisy_adapters(recipe)), "base"]
    rows: list[tuple[Floats, Floats]] = []
    with multiprocessing.get_context("spawn").Pool(2, _open, (recipe, cache)) as pool:
        for row in pool.imap(_measure, range(len(names)), chunksize=4):
            rows.append(row)
            advance(len(rows))
        pool.close()
        pool.join()
    scores, likelihoods = (np.stack(values, axis=1) for values in zip(*rows, strict=True))
    unfinished = path.with_suffix(".part.npz")
    np.savez_compressed(
        unfinished,
        tasks=TASK_IDS,
        names=names,
        scores=scores.astype(np.uint8),
        likelihoods=likelihoods.astype(np.float32),
    )
    unfinished.replace(path)
    return path


def load_pool_table(path: Path) -> MeasuredPool:
    """Returns the table at ``path``."""
    with np.load(path) as file:
        tasks, names = (tuple(map(str, file[key])) for key in ("tasks", "names"))
        return MeasuredPool(
            tasks, names, file["scores"].astype(np.float64), file["likelihoods"].astype(np.float64)
        )


def benchmark_examples(task_id: str, seed: int) -> list[Example]:
    """The EXAMPLES examples of a task, in the order of the table's columns."""
    task = next(task for task in TASKS if task.id == task_id)
    return task_examples(task, "validation", EXAMPLES, seed)


def _open(recipe: NoisyRecipe, cache: Path) -> None:
    """Prepares a process to measure."""
    global _workshop, _meter
    torch.set_num_threads(1)
    pool = load_pool(POOL)
    _workshop = Workshop(recipe, pool.stack, trained_stacks(recipe, cache, lambda _: None))
    examples = [example for task in TASK_IDS for example in benchmark_examples(task, recipe.seed)]
    _meter = Meter(pool.model, pool.codec, examples)


_workshop: Workshop
_meter: Meter


def _measure(place: int) -> tuple[Floats, Floats]:
    """Scores and likelihoods (T, n) of the adapter at ``place`` of the recipe; behind them is the base."""
    adapters = _workshop.adapters
    lora = _workshop.make(adapters[place]) if place < len(adapters) else None
    scores, likelihoods = _meter.measure(lora)
    shape = (len(TASK_IDS), EXAMPLES)
    return scores.reshape(shape), likelihoods.reshape(shape)


def _digest(recipe: NoisyRecipe) -> str:
    described = f"{_VERSION} {recipe.digest()} {TASK_IDS} {EXAMPLES}"
    return hashlib.sha256(described.encode()).hexdigest()[:32]
