"""Matrices of a decoding batch stacked row by row, so that one batched product a layer does for all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lorauter_engine.model.plan import AdapterSet, BatchPlan, Matrices, Stack

WAIT = 3
"""Stacking all rows of a batch costs about what this many steps of decoding gain by it."""

FEWEST = 4
"""With fewer segments there is nothing to gain."""

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    """``a`` is (slots, R, in), ``b_t`` (slots, R, out)."""

    a: Tensor
    b_t: Tensor


class Stacks:
    """Keeps the matrices of row i of the batch in slot i; a row that stays is not copied again."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._slots = 0
        self._layers: dict[str, _Layer] = {}
        self._owners: list[Key | None] = []

    def worth_after(self, plan: BatchPlan, sets: Sequence[AdapterSet]) -> int | None:
        """Returns after how many steps of ``plan`` stacking pays; None: never.

        It never does where the copies need more than the limit, or twice the memory that the plan reads.
        """
        if plan.is_union or max(map(len, plan.parts.values())) < FEWEST:
            return None
        copied = read = 0
        for parts in plan.parts.values():
            rank = max(part.matrices.a.shape[0] for part in parts)
            per_rank = _bytes(parts[0].matrices) // parts[0].matrices.a.shape[0]
            copied += rank * per_rank
            read += sum(_bytes(part.matrices) for part in parts)
        if copied * _slots(plan.rows) > self._limit_bytes or copied * plan.rows > 2 * read:
            return None
        changed = sum(key != owner for key, owner in zip(_keys(sets), self._padded(plan.rows), strict=True))
        return max(1, -(-WAIT * changed // plan.rows))

    def stacked(self, plan: BatchPlan, sets: Sequence[AdapterSet]) -> BatchPlan:
        """Returns a plan that computes what ``plan``, made of ``sets``, does."""
        self._reserve(plan)
        for row, (key, adapters) in enumerate(zip(_keys(sets), sets, strict=True)):
            if self._owners[row] != key:
                self._write(row, adapters)
                self._owners[row] = key
        stacks = {}
        for name, parts in plan.parts.items():
            rank = max(part.matrices.a.shape[0] for part in parts)
            coefficients = parts[0].coefficients.new_zeros(plan.rows, rank)
            for part in parts:
                coefficients[part.start : part.end, : part.coefficients.shape[1]] = part.coefficients
            layer = self._layers[name]
            stacks[name] = Stack(layer.a[: plan.rows, :rank], layer.b_t[: plan.rows, :rank], coefficients)
        return BatchPlan(plan.rows, {}, stacks)

    def _padded(self, rows: int) -> list[Key | None]:
        return [*self._owners, *[None] * rows][:rows]

    def _reserve(self, plan: BatchPlan) -> None:
        fits = plan.rows <= self._slots
        for name, parts in plan.parts.items():
            layer = self._layers.get(name)
            rank = max(part.matrices.a.shape[0] for part in parts)
            fits = fits and layer is not None and layer.a.shape[1] >= rank
        if fits:
            return
        # What a plan does not need is given back: the limit is reckoned for one plan.
        self._slots = _slots(plan.rows)
        self._owners = [None] * self._slots
        self._layers = {}
        for name, parts in plan.parts.items():
            rank = max(part.matrices.a.shape[0] for part in parts)
            a, b_t = parts[0].matrices.a, parts[0].matrices.b_t
            self._layers[name] = _Layer(
                a.new_empty(self._slots, rank, a.shape[1]), b_t.new_empty(self._slots, rank, b_t.shape[1])
            )

    def _write(self, row: int, adapters: AdapterSet) -> None:
        for name, layer in self._layers.items():
            end = 0
            for adapter, _ in adapters:
                matrices = adapter.modules.get(name)
                if matrices is None:
                    continue
                start, end = end, end + matrices.a.shape[0]
                layer.a[row, start:end] = matrices.a
                layer.b_t[row, start:end] = matrices.b_t
            # Zero times what another row left there need not be zero.
            layer.a[row, end:] = 0
            layer.b_t[row, end:] = 0


def _slots(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _keys(sets: Sequence[AdapterSet]) -> list[Key]:
    return [tuple(adapter.digest for adapter, _ in adapters) for adapters in sets]


def _bytes(matrices: Matrices) -> int:
    return matrices.a.nbytes + matrices.b_t.nbytes
