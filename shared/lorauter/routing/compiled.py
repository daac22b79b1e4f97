"""A pool laid out as arrays, made once per snapshot and read by every decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorauter.identifiers import BASE
from lorauter.routing.bm25 import Lexicon, lexicon, terms_of
from lorauter.routing.model import Adapter, Composition, Pool, Profile, Task
from lorauter.routing.posterior import UNFITTED
from lorauter.routing.representation import unit_rows
from lorauter.routing.whitening import middle, unpacked, whitener


@dataclass(frozen=True, slots=True)
class Arm:
    """What may serve a query: a version of an adapter, or the base (version 0, no digest).

    ``rank`` is 0 for the base, and where it is not known.
    """

    adapter_id: str
    version: int
    digest: str
    rank: int = 0

    @property
    def is_base(self) -> bool:
        """Whether this is the bare model."""
        return self.adapter_id == BASE


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSet:
    """A measured composition: the ``arms`` (m,) that it is made of; their ``weights`` (m,) sum to 1.

    ``share``: its score as a share of the best single score on its task, above 1 where it wins.
    """

    measured: Composition
    arms: NDArray[np.intp]
    weights: NDArray[np.float64]
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class CompiledPool:
    """An immutable pool of T tasks and A arms; every array is read-only, so threads may share it.

    ``tasks`` are in order of id. ``directions``: float32 (T, d), centroids of length 1 (or 0). ``mean``
    (d,): that of the centroids. ``whitener`` (d, d): None where nothing is whitened. ``whitened``: float32
    (T, d), the centroids less the mean, whitened, of length 1. ``lexicon``: the tasks' terms. ``adapters``:
    all versions there are. ``arms``: the base, then the routable adapter versions in order of id.
    ``all_tasks`` (T,) and ``all_arms`` (A,): True for each.
    ``columns``: (T, M), the arms measured on each task, -1 where there are fewer than M; ``measured`` (T,):
    whether any is. ``scores`` and ``shares``: float64 (T, M), the affinity, and its share of the best
    affinity among the task's arms (0 where that is 0). ``sets``: each task's measured compositions, largest
    gain first. ``carriers``: rows of tasks by tag.
    """

    pool_id: str
    untypical_policy: str
    profile: Profile
    tasks: tuple[Task, ...]
    directions: NDArray[np.float32]
    mean: NDArray[np.float32]
    whitener: NDArray[np.float32] | None
    whitened: NDArray[np.float32]
    lexicon: Lexicon
    adapters: tuple[Adapter, ...]
    arms: tuple[Arm, ...]
    all_tasks: NDArray[np.bool_]
    all_arms: NDArray[np.bool_]
    columns: NDArray[np.intp]
    measured: NDArray[np.bool_]
    scores: NDArray[np.float64]
    shares: NDArray[np.float64]
    sets: tuple[tuple[CompiledSet, ...], ...]
    task_rows: Mapping[str, int]
    arm_rows: Mapping[str, tuple[int, ...]]
    carriers: Mapping[str, NDArray[np.intp]]


def compile_pool(pool: Pool) -> CompiledPool:
    """Returns ``pool`` laid out for decisions; affinities of versions that are not routable are left out."""
    tasks = tuple(sorted(pool.tasks, key=lambda task: task.task_id))
    routable = sorted(
        (
            Arm(adapter.adapter_id, adapter.version, adapter.digest, adapter.rank)
            for adapter in pool.adapters
            if adapter.routable and not adapter.refusal
        ),
        key=lambda arm: (arm.adapter_id, arm.version),
    )
    arms = (Arm(BASE, 0, ""), *routable)
    row_of = {(arm.adapter_id, arm.version): row for row, arm in enumerate(arms)}
    columns, scores = _affinities(tasks, row_of)
    top = np.where(columns >= 0, scores, 0.0).max(axis=1, initial=0.0)[:, None]
    shares = np.divide(scores, top, out=np.zeros_like(scores), where=top > 0)
    centroids = np.stack([task.centroid for task in tasks]) if tasks else np.zeros((0, 0), np.float32)
    directions = unit_rows(centroids)
    mean = middle(centroids.astype(np.float64)).astype(np.float32)
    white = _whitener(pool.profile)
    apart: NDArray[np.float32] = centroids - mean
    whitened = unit_rows(apart @ white if white is not None and tasks else apart)
    measured = np.any(columns >= 0, axis=1)
    all_tasks, all_arms = np.ones(len(tasks), dtype=bool), np.ones(len(arms), dtype=bool)
    for array in (all_tasks, all_arms, columns, measured, scores, shares, directions, mean, whitened):
        array.setflags(write=False)
    return CompiledPool(
        pool_id=pool.pool_id,
        untypical_policy=pool.untypical_policy,
        profile=pool.profile,
        tasks=tasks,
        directions=directions,
        mean=mean,
        whitener=white,
        whitened=whitened,
        lexicon=lexicon([terms_of(task.terms) for task in tasks]),
        adapters=pool.adapters,
        arms=arms,
        all_tasks=all_tasks,
        all_arms=all_arms,
        columns=columns,
        measured=measured,
        scores=scores,
        shares=shares,
        sets=tuple(_sets(task, row_of, float(best)) for task, best in zip(tasks, top[:, 0], strict=True)),
        task_rows={task.task_id: row for row, task in enumerate(tasks)},
        arm_rows=_rows_by_id(arms),
        carriers=_carriers(tasks),
    )


def _whitener(profile: Profile) -> NDArray[np.float32] | None:
    shrinkage = profile.constants.get("shrinkage", UNFITTED["shrinkage"])
    if profile.scatter is None or shrinkage >= 1.0:
        return None
    white = whitener(unpacked(profile.scatter), shrinkage)
    white.setflags(write=False)
    return white


def _affinities(
    tasks: Sequence[Task], row_of: Mapping[tuple[str, int], int]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    known = [
        [
            (row, affinity.score)
            for affinity in task.affinities
            if (row := row_of.get((affinity.adapter_id, affinity.adapter_version))) is not None
        ]
        for task in tasks
    ]
    width = max((len(row) for row in known), default=0)
    columns = np.full((len(tasks), width), -1, dtype=np.intp)
    scores = np.zeros((len(tasks), width), dtype=np.float64)
    for row, pairs in enumerate(known):
        if pairs:
            columns[row, : len(pairs)], scores[row, : len(pairs)] = zip(*pairs, strict=True)
    return columns, scores


def _sets(task: Task, row_of: Mapping[tuple[str, int], int], best: float) -> tuple[CompiledSet, ...]:
    """Returns the compositions that may be served of a task whose best single score is ``best``; none at 0.

    A gain was measured beside the best single arm on the same examples, so it is added to that one's score.
    """
    if best <= 0 or not task.compositions:
        return ()
    found = []
    for each in task.compositions:
        rows = [row_of.get((id_, version), -1) for id_, version, _ in each.members]
        if -1 not in rows:
            weights = np.array([weight for _, _, weight in each.members])
            share = max(0.0, 1 + each.gain / best)
            found.append(CompiledSet(each, np.array(rows, dtype=np.intp), weights / weights.sum(), share))
    return tuple(found)


def _rows_by_id(arms: Sequence[Arm]) -> dict[str, tuple[int, ...]]:
    rows: dict[str, list[int]] = {}
    for row, arm in enumerate(arms):
        rows.setdefault(arm.adapter_id, []).append(row)
    return {adapter_id: tuple(values) for adapter_id, values in rows.items()}


def _carriers(tasks: Sequence[Task]) -> dict[str, NDArray[np.intp]]:
    rows: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        for tag in task.tags:
            rows.setdefault(tag, []).append(row)
    return {tag: np.array(values, dtype=np.intp) for tag, values in rows.items()}
