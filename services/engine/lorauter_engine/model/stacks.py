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

    def worth_after(self, plan: BatchPlan, sets: Sequence[AdapterSet], first: int = 0) -> int | None:
        """Returns after how many steps of ``plan`` stacking pays; None: never.

        Its rows are those of the batch from ``first`` on. It never pays where the copies need more than the
        limit, or twice the memory that the plan reads.
        """
        if plan.is_union or max(map(len, plan.parts.values())) < FEWEST:
            return None
        copied = sum(rank * _per_rank(plan, name) for name, rank in _ranks(plan).items())
        read = sum(_bytes(part.matrices) for parts in plan.parts.values() for part in parts)
        if copied * _slots(first + plan.rows) > self._limit_bytes or copied * plan.rows > 2 * read:
            return None
        owners = [*self._owners[first:], *[None] * plan.rows]
        changed = sum(key != owner for key, owner in zip(_keys(sets), owners, strict=False))
        return max(1, -(-WAIT * changed // plan.rows))

    def stacked(self, plan: BatchPlan, sets: Sequence[AdapterSet], first: int = 0) -> BatchPlan:
        """Returns a plan that computes what ``plan``, made of ``sets``, does."""
        self._reserve(plan, first + plan.rows)
        for row, (key, adapters) in enumerate(zip(_keys(sets), sets, strict=True), first):
            if self._owners[row] != key:
                self._write(row, adapters)
                self._owners[row] = key
        stacks = {}
        for name, rank in _ranks(plan).items():
            parts = plan.parts[name]
            coefficients = parts[0].coefficients.new_zeros(plan.rows, rank)
            for part in parts:
                coefficients[part.start : part.end, : part.coefficients.shape[1]] = part.coefficients
            own = slice(first, first + plan.rows), slice(rank)
            stacks[name] = Stack(self._layers[name].a[own], self._layers[name].b_t[own], coefficients)
        return BatchPlan(plan.rows, {}, stacks)

    def _reserve(self, plan: BatchPlan, rows: int) -> None:
        wanted = _ranks(plan)
        have = {name: layer.a.shape[1] for name, layer in self._layers.items()}
        if rows <= self._slots and all(have.get(name, 0) >= rank for name, rank in wanted.items()):
            return
        old, self._layers = self._layers, {}
        self._slots = max(self._slots, _slots(rows))
        self._owners = [None] * self._slots
        shapes = {name: (layer.a.shape[2], layer.b_t.shape[2]) for name, layer in old.items()}
        for name, parts in plan.parts.items():
            shapes[name] = (parts[0].matrices.a.shape[1], parts[0].matrices.b_t.shape[1])
        sample = next(iter(plan.parts.values()))[0].matrices.a
        ranks = {name: max(have.get(name, 0), wanted.get(name, 0)) for name in shapes}
        size = sum(rank * sum(shapes[name]) for name, rank in ranks.items()) * sample.element_size()
        if size * self._slots > self._limit_bytes:
            # Not all that the rows before needed fits beside it: only this plan's is kept.
            self._slots, ranks = _slots(rows), wanted
            self._owners = self._owners[: self._slots]
        for name, rank in ranks.items():
            width, out = shapes[name]
            self._layers[name] = _Layer(
                sample.new_empty(self._slots, rank, width), sample.new_empty(self._slots, rank, out)
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


def _ranks(plan: BatchPlan) -> dict[str, int]:
    return {name: max(part.matrices.a.shape[0] for part in parts) for name, parts in plan.parts.items()}


def _per_rank(plan: BatchPlan, name: str) -> int:
    matrices = plan.parts[name][0].matrices
    return _bytes(matrices) // matrices.a.shape[0]


def _bytes(matrices: Matrices) -> int:
    return matrices.a.nbytes + matrices.b_t.nbytes
