"""Fits a routing profile over validation sets, every example scored with itself left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lorauter.errors import InvalidArgument
from lorauter.routing.bm25 import NO_TERMS, Terms
from lorauter.routing.model import Profile
from lorauter.routing.posterior import fit_posterior
from lorauter.routing.representation import check_vectors, unit_rows

UNFITTED_TASKS = 3
UNFITTED_TEMPERATURE = 0.05
"""K and τ where nothing can be scored: the paper's K, and about the τ that small encoders fit."""

TEMPERATURES = np.geomspace(0.5, 0.005, 41)
"""What τ is chosen from, from wary to sure; ties go to the wary side."""

COVERAGE = 0.99
"""K is the smallest number of tasks that holds the true one for this share of examples."""

UNTYPICAL_BELOW = 0.02
"""Queries less typical than this meet the pool's policy: 2 % of known queries do."""

TYPICALITY_LEVELS = (0.0, 0.005, 0.01, 0.02, 0.05, *(step / 10 for step in range(1, 10)), 0.95, 0.99, 1.0)
"""Quantiles kept of the leave-one-out best similarities; finest where the policy decides."""

MAX_SCORES = 1 << 22
"""Most (example, task) scores that a fit looks at: beyond it, evenly spaced examples stand for all."""

_CHUNK = 1 << 20

Scores = NDArray[np.float32]
Owners = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class TaskExamples:
    """A task's validation inputs: unit vectors, float32 (n, d), and each one's terms, or none at all.

    ``total`` are the terms of all of them together, as the task's representation keeps them.
    """

    task_id: str
    vectors: NDArray[np.float32]
    terms: Sequence[Terms] = ()
    total: Terms = field(default_factory=lambda: NO_TERMS)


def typicality_name(level: float, of: str = "similarity") -> str:
    """Returns the constant that holds a quantile of the best similarities, or scores, of known queries."""
    return f"best_{of}_q{level:.3f}"


def fit_profile(tasks: Sequence[TaskExamples], max_tasks: int = UNFITTED_TASKS) -> Profile:
    """Returns a pool's profile: what the strategies ``default`` and ``paper_tuned`` go by.

    For ``default``: ``shrinkage``, ``dense_weight``, ``lexical_weight`` and the scatter, see
    lorauter.routing.posterior; ``default_tasks`` and the quantiles of the best score are like the following.
    For ``paper_tuned``, the paper's rule with K and τ fitted: each example is scored against all centroids,
    its own task's taken without it. ``temperature`` (τ) minimises the log-loss of softmax(similarity / τ)
    over all tasks; ``tasks`` (K, 1 to ``max_tasks``) is the smallest K whose nearest tasks hold the true one
    for 99 % of the examples, or ``max_tasks``. Neither needs affinities. Also kept: quantiles of the best
    similarity, for typicality. An example without a companion in its task scores nothing; with nothing to
    score, constants are UNFITTED ones.
    Figures: loo_top1, loo_top3, log_loss of ``default``, the same with ``paper_tuned_`` before them, tasks,
    examples (those scored for it). The order of tasks does not matter.
    Raises InvalidArgument: INVALID_VECTORS, DUPLICATE_TASK.
    """
    chosen = _checked(tasks)
    used = [(task.task_id, task.vectors) for task in chosen]
    figures = {"tasks": float(len(used)), "examples": 0.0}
    constants = {
        "tasks": float(min(UNFITTED_TASKS, max_tasks)),
        "temperature": UNFITTED_TEMPERATURE,
        "untypical_below": UNTYPICAL_BELOW,
    }
    scores, owners = _leave_one_out(used)
    if len(owners):
        figures["examples"] = float(len(owners))
        best = np.quantile(scores.max(axis=1), TYPICALITY_LEVELS)
        for level, value in zip(TYPICALITY_LEVELS, best, strict=True):
            constants[typicality_name(level)] = float(value)
    if len(owners) and len(used) > 1:
        ranks = _ranks(scores, owners)
        temperature, loss = _fit_temperature(scores, owners)
        constants["temperature"] = temperature
        constants["tasks"] = _covering(ranks, max_tasks)
        figures |= {
            "paper_tuned_loo_top1": float(np.mean(ranks < 1)),
            "paper_tuned_loo_top3": float(np.mean(ranks < 3)),
            "paper_tuned_log_loss": loss,
        }
    fit = fit_posterior(
        [task.vectors for task in chosen], [task.terms for task in chosen], [task.total for task in chosen]
    )
    constants |= {**fit.constants, "default_tasks": float(min(UNFITTED_TASKS, max_tasks))}
    if len(fit.best):
        best = np.quantile(fit.best, TYPICALITY_LEVELS)
        for level, value in zip(TYPICALITY_LEVELS, best, strict=True):
            constants[typicality_name(level, "score")] = float(value)
        if len(used) > 1:
            constants["default_tasks"] = _covering(fit.ranks, max_tasks)
            figures |= {
                "loo_top1": float(np.mean(fit.ranks < 1)),
                "loo_top3": float(np.mean(fit.ranks < 3)),
                "log_loss": fit.loss,
            }
    return replace(make_profile(constants, figures), scatter=fit.scatter)


def _covering(ranks: NDArray[np.intp], max_tasks: int) -> float:
    """Returns the smallest number of tasks that holds the true one for COVERAGE of the examples."""
    covered = [float(np.mean(ranks < k)) for k in range(1, max_tasks + 1)]
    return float(next((k for k, share in enumerate(covered, 1) if share >= COVERAGE), max_tasks))


def make_profile(constants: Mapping[str, float], figures: Mapping[str, float]) -> Profile:
    """Returns a profile whose digest is that of its constants, rounded to six decimals, alone."""
    rounded = {name: round(float(constants[name]), 6) for name in sorted(constants)}
    body = json.dumps({"kind": "lorauter.profile.v1", "constants": rounded}, sort_keys=True)
    digest = f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"
    return Profile(
        digest=digest,
        constants=rounded,
        figures={name: round(float(figures[name]), 6) for name in sorted(figures)},
    )


def _checked(tasks: Sequence[TaskExamples]) -> list[TaskExamples]:
    """Returns the tasks that have examples, by id, as unit vectors of one dimension."""
    used = [
        replace(task, vectors=unit_rows(check_vectors(task.vectors)))
        for task in sorted(tasks, key=lambda task: task.task_id)
        if len(task.vectors)
    ]
    if len({task.task_id for task in used}) != len(used):
        raise InvalidArgument("DUPLICATE_TASK", "a task was given twice: give each task's examples once")
    if len({task.vectors.shape[1] for task in used}) > 1:
        raise InvalidArgument("INVALID_VECTORS", "vectors differ in dimension: encode all tasks alike")
    return used


def _leave_one_out(used: Sequence[tuple[str, NDArray[np.float32]]]) -> tuple[Scores, Owners]:
    """Returns similarities (examples, tasks), own task without the example, and each example's task."""
    if not used:
        return np.zeros((0, 0), np.float32), np.zeros(0, np.intp)
    counts = np.array([len(vectors) for _, vectors in used])
    vectors = np.concatenate([vectors for _, vectors in used])
    owners = np.repeat(np.arange(len(used)), counts)
    sums = np.add.reduceat(vectors, np.concatenate([[0], np.cumsum(counts)[:-1]]), axis=0)
    scored = np.flatnonzero(counts[owners] > 1)
    most = max(1, MAX_SCORES // len(used))
    if len(scored) > most:
        scored = scored[np.linspace(0, len(scored) - 1, most).astype(np.intp)]
    vectors, owners = vectors[scored], owners[scored]
    scores = vectors @ unit_rows(sums).T
    without = unit_rows(sums[owners] - vectors)
    scores[np.arange(len(owners)), owners] = np.einsum("ij,ij->i", vectors, without)
    return scores, owners


def _ranks(scores: Scores, owners: Owners) -> NDArray[np.intp]:
    """Returns how many tasks come before each example's own; equal scores go by the tasks' order."""
    own = scores[np.arange(len(owners)), owners][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < owners[:, None]
    before: NDArray[np.intp] = np.count_nonzero((scores > own) | ((scores == own) & earlier), axis=1)
    return before


def _fit_temperature(scores: Scores, owners: Owners) -> tuple[float, float]:
    """Returns τ of the grid with the least log-loss, and that loss; it is convex in 1 / τ."""
    own = scores[np.arange(len(owners)), owners].astype(np.float64)
    top = scores.max(axis=1)

    @cache
    def loss(index: int) -> float:
        return _log_loss(scores, own, top, float(TEMPERATURES[index]))

    index = _first_minimum(loss, len(TEMPERATURES))
    return float(TEMPERATURES[index]), loss(index)


def _first_minimum(value: Callable[[int], float], size: int) -> int:
    """Returns the first index of the least value of a sequence that falls and then rises."""
    low, high = 0, size - 1
    while low < high:
        middle = (low + high) // 2
        if value(middle) <= value(middle + 1):
            high = middle
        else:
            low = middle + 1
    return low


def _log_loss(scores: Scores, own: NDArray[np.float64], top: Scores, temperature: float) -> float:
    rows = max(1, _CHUNK // scores.shape[1])
    total = 0.0
    for start in range(0, len(scores), rows):
        part = slice(start, start + rows)
        shifted = (scores[part] - top[part, None]) / np.float32(temperature)
        mass = np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64)
        total += float(np.sum(np.log(mass) - (own[part] - top[part]) / temperature))
    return total / len(scores)
