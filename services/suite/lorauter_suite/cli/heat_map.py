"""The grid of a heat map: which adapters it shows, and in which order tasks and adapters stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, zip_longest

import numpy as np
from numpy.typing import NDArray

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.evidence import BASE, by_task

Floats = NDArray[np.float64]
Column = tuple[str, int]
"""An adapter's id and version."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """T tasks by A adapters, in the order in which they are drawn; like tasks stand together.

    ``scores``: (T, 1 + A), 0..1, NaN where not measured; the first column is the base. ``shares``: of the
    same shape, which part of what was measured on the task at most stands behind a score, 0..1.
    ``winners``: (T,), the column that routing thinks best, -1 where nothing was measured. ``groups``: the
    tags of the tasks with their first and last row. ``adapter_count``: adapters measured, shown or not.
    ``began``, ``ended``: when the first and the last of all was measured, in UTC.
    """

    pool: str
    tasks: tuple[str, ...]
    groups: tuple[tuple[str, int, int], ...]
    columns: tuple[str, ...]
    scores: Floats
    shares: Floats
    winners: tuple[int, ...]
    adapter_count: int
    evaluations: int
    began: datetime
    ended: datetime


def arrange(tasks: Sequence[pb.Task], affinities: Sequence[pb.Affinity], limit: int) -> Grid:
    """Returns the grid of a pool's tasks and of the ``limit`` best adapters at most.

    ``affinities`` holds at least one. An adapter is among the best if it is best on some task, else second
    best, and so on.
    """
    measured = by_task(affinities)
    everyone = {_column(one) for one in affinities if one.adapter_id != BASE}
    columns = _best(measured, limit)
    cells = {(one.task_id, *_column(one)): one for one in affinities}
    scores, shares = _matrices([task.id for task in tasks], columns, cells)
    rows = _row_order(tasks, scores)
    order = _column_order(scores[rows, 1:], _group_numbers([_tag(tasks[row]) for row in rows]))
    across = [0, *(1 + order)]
    shown = [(BASE, 0), *(columns[place] for place in order)]
    times = [one.measure_time.ToDatetime() for one in affinities]
    return Grid(
        pool=tasks[0].pool if tasks else affinities[0].pool,
        tasks=tuple(tasks[row].id for row in rows),
        groups=_groups([_tag(tasks[row]) for row in rows]),
        columns=_labels(shown[1:]),
        scores=scores[np.ix_(rows, across)],
        shares=shares[np.ix_(rows, across)],
        winners=tuple(_winner(tasks[row], measured.get(tasks[row].id, []), shown) for row in rows),
        adapter_count=len(everyone),
        evaluations=sum(one.count for one in affinities if not one.imported),
        began=min(times),
        ended=max(times),
    )


def _best(measured: Mapping[str, Sequence[pb.Affinity]], limit: int) -> list[Column]:
    ranked = [[_column(one) for one in best if one.adapter_id != BASE] for best in measured.values()]
    found = (one for rank in zip_longest(*ranked) for one in rank if one is not None)
    return list(dict.fromkeys(found))[:limit]


def _matrices(
    tasks: Sequence[str], columns: Sequence[Column], cells: Mapping[tuple[str, str, int], pb.Affinity]
) -> tuple[Floats, Floats]:
    scores = np.full((len(tasks), 1 + len(columns)), np.nan)
    counts = np.zeros_like(scores)
    for row, task in enumerate(tasks):
        for place, column in enumerate([(BASE, 0), *columns]):
            one = cells.get((task, *column))
            if one is not None and one.count:
                scores[row, place], counts[row, place] = one.score, one.count
    return scores, counts / np.maximum(counts.max(axis=1, keepdims=True), 1)


def _row_order(tasks: Sequence[pb.Task], scores: Floats) -> list[int]:
    """Returns rows by tag, and tags and tasks within a tag by how alike their scores are."""
    profiles = _centred(scores)
    tags = sorted({_tag(task) for task in tasks})
    members = {tag: [row for row, task in enumerate(tasks) if _tag(task) == tag] for tag in tags}
    means = np.stack([profiles[members[tag]].mean(axis=0) for tag in tags])
    order: list[int] = []
    for place in _chain(means):
        rows = members[tags[place]]
        order += [rows[row] for row in _chain(profiles[rows])]
    return order


def _column_order(scores: Floats, groups: Sequence[int]) -> NDArray[np.int64]:
    """Returns adapters by the group of rows they are best at, so that the map shows blocks on a diagonal."""
    profiles = _centred(scores)
    numbers = np.asarray(groups)
    means = np.stack([profiles[numbers == one].mean(axis=0) for one in dict.fromkeys(groups)])
    best = means.argmax(axis=0)
    row = profiles.argmax(axis=0)
    return np.lexsort((-means[best, np.arange(len(best))], row, best))


def _centred(scores: Floats) -> Floats:
    """Returns scores less their row's mean, 0 where not measured."""
    known = ~np.isnan(scores)
    filled = np.where(known, scores, 0.0)
    means = filled.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    return np.where(known, filled - means, 0.0)


def _chain(profiles: Floats) -> list[int]:
    """Returns rows so that each stands beside the one that is most like it of those left."""
    lengths = np.linalg.norm(profiles, axis=1, keepdims=True)
    unit = profiles / np.maximum(lengths, 1e-12)
    alike = unit @ unit.T
    order, left = [0], set(range(1, len(profiles)))
    while left:
        nearest = max(sorted(left), key=lambda row: float(alike[order[-1], row]))
        order.append(nearest)
        left.remove(nearest)
    return order


def _winner(task: pb.Task, best: Sequence[pb.Affinity], shown: Sequence[Column]) -> int:
    if not best:
        return -1
    lift = task.lift
    chosen = (lift.adapter_id, lift.adapter_version) if task.HasField("lift") else _column(best[0])
    return shown.index(chosen) if chosen in shown else -1


def _groups(tags: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    found = []
    for tag, rows in groupby(range(len(tags)), key=lambda row: tags[row]):
        places = list(rows)
        found.append((tag, places[0], places[-1]))
    return tuple(found)


def _group_numbers(tags: Sequence[str]) -> list[int]:
    return [number for number, (_, first, last) in enumerate(_groups(tags)) for _ in range(first, last + 1)]


def _labels(columns: Iterable[Column]) -> tuple[str, ...]:
    shown = list(columns)
    names = [name for name, _ in shown]
    return tuple(f"{name} v{version}" if names.count(name) > 1 else name for name, version in shown)


def _column(affinity: pb.Affinity) -> Column:
    return (affinity.adapter_id, affinity.adapter_version)


def _tag(task: pb.Task) -> str:
    return task.tags[0] if task.tags else ""
