"""What a profile is fitted on, and what successive fits of one pool need not compute again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorauter.errors import InvalidArgument
from lorauter.routing.bm25 import NO_TERMS, Terms
from lorauter.routing.representation import check_vectors, unit_rows

GRID = np.float32(1 << 20)
"""Unit vectors are rounded to multiples of 1 / GRID: their sums and products are then exact in float64, so
they are the same in whatever order tasks came and went."""

_ROWS = 4096

Floats = NDArray[np.float64]
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


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """The T tasks that have examples, in order of id.

    ``vectors``: float32 (n, d) each, of length 1 and on the grid; ``counts`` (T,): n; ``sums``: float64
    (T, d), those of the vectors; ``products``: float64 (d, d), Σ x xᵀ over all of them.
    """

    tasks: Sequence[TaskExamples]
    vectors: Sequence[NDArray[np.float32]]
    counts: Owners
    sums: Floats
    products: Floats

    def rows(self, owners: Owners, places: Owners) -> NDArray[np.float32]:
        """Returns (m, d), the vectors at ``places`` of the tasks ``owners``."""
        picked = [self.vectors[own][place] for own, place in zip(owners, places, strict=True)]
        return np.stack(picked) if picked else np.zeros((0, self.sums.shape[1]), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    source: TaskExamples
    vectors: NDArray[np.float32]
    total: Floats


class Memory:
    """What fits of one pool remember of its tasks; a task is known again by the TaskExamples object.

    A fit with it returns what a fit without it does, bit by bit; only sooner.
    """

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._products: Floats = np.zeros((0, 0))

    def gather(self, tasks: Sequence[TaskExamples]) -> Gathered:
        """Returns the tasks that have examples; raises InvalidArgument: INVALID_VECTORS, DUPLICATE_TASK."""
        wanted = sorted((task for task in tasks if len(task.vectors)), key=lambda task: task.task_id)
        if len({task.task_id for task in wanted}) != len(wanted):
            raise InvalidArgument("DUPLICATE_TASK", "a task was given twice: give each task's examples once")
        held = {task.task_id: self._known(task) or _hold(task) for task in wanted}
        if len({each.vectors.shape[1] for each in held.values()}) > 1:
            raise InvalidArgument("INVALID_VECTORS", "vectors differ in dimension: encode all tasks alike")
        self._products, self._held = self._changed(held), held
        return Gathered(
            tasks=wanted,
            vectors=[each.vectors for each in held.values()],
            counts=np.array([len(each.vectors) for each in held.values()], dtype=np.intp),
            sums=np.stack([each.total for each in held.values()]) if held else np.zeros((0, 0)),
            products=self._products,
        )

    def _known(self, task: TaskExamples) -> _Held | None:
        held = self._held.get(task.task_id)
        return held if held is not None and held.source is task else None

    def _changed(self, held: dict[str, _Held]) -> Floats:
        gone = [each for id_, each in self._held.items() if held.get(id_) is not each]
        if 2 * len(gone) >= len(self._held):
            return _products(list(held.values()))
        come = [each for id_, each in held.items() if self._held.get(id_) is not each]
        return self._products + _products(come) - _products(gone)


def _hold(task: TaskExamples) -> _Held:
    vectors: NDArray[np.float32] = np.rint(unit_rows(check_vectors(task.vectors)) * GRID) / GRID
    return _Held(task, vectors, vectors.sum(axis=0, dtype=np.float64))


def _products(held: Sequence[_Held]) -> Floats:
    if not held:
        return np.zeros((1, 1))
    stacked = np.concatenate([each.vectors for each in held])
    products = np.zeros((stacked.shape[1], stacked.shape[1]))
    for start in range(0, len(stacked), _ROWS):
        part = stacked[start : start + _ROWS].astype(np.float64)
        products += part.T @ part
    return products
