"""Lays out a batch's weighted adapter sets so that each layer adds them with two matrix products."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SEGMENT_FLOPS = 4e5
"""What one more segment costs in a layer (about 20 us of calls), in floating point operations."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """One adapter, or several side by side, in one layer.

    ``a`` is (R, in), ``b_t`` is (R, out) with each adapter's scale in it; ``columns`` (R,) tells which
    adapter each of the R columns belongs to; ``layout`` names equal ``columns``.
    """

    a: Tensor
    b_t: Tensor
    columns: Tensor
    layout: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """An adapter in the model's memory. ``modules`` is keyed by full module name.

    ``is_tame``: its numbers are so small that zero times what it makes of a row is zero, and never NaN.
    """

    digest: str
    modules: Mapping[str, Matrices]
    size_bytes: int
    is_tame: bool = True


AdapterSet = tuple[tuple[ResidentAdapter, float], ...]
"""Adapters with their weights, sorted by digest, none twice. Empty: the base model."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``start`` to ``end`` of a batch in one layer; ``coefficients`` is (rows, R)."""

    start: int
    end: int
    matrices: Matrices
    coefficients: Tensor


@dataclass(frozen=True, slots=True)
class Stack:
    """All rows of a batch in one layer, each with matrices of its own, zeros where a row has fewer.

    ``a`` is (rows, R, in), ``b_t`` (rows, R, out) and ``coefficients`` (rows, R).
    """

    a: Tensor
    b_t: Tensor
    coefficients: Tensor


@dataclass(slots=True)
class BatchPlan:
    """The adapters of all rows of one batch, layer by layer; layers that none adapts are absent.

    A layer stands in ``parts`` or in ``stacks``. ``is_union``: every row multiplies the adapters of all.
    """

    rows: int
    parts: dict[str, list[Part]] = field(default_factory=dict)
    stacks: dict[str, Stack] = field(default_factory=dict)
    is_union: bool = False


class Concatenations:
    """Adapters laid side by side per layer, kept for sets that come again."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._size_bytes = 0
        self._kept: OrderedDict[tuple[str, ...], tuple[Mapping[str, Matrices], int]] = OrderedDict()

    def get(self, adapters: Sequence[ResidentAdapter]) -> Mapping[str, Matrices]:
        """Returns the matrices of ``adapters`` side by side, by module."""
        if len(adapters) == 1:
            return adapters[0].modules
        key = tuple(adapter.digest for adapter in adapters)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        modules = _concatenate(adapters)
        size = sum(adapter.size_bytes for adapter in adapters)
        self._kept[key] = (modules, size)
        self._size_bytes += size
        while self._size_bytes > self.limit_bytes and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._size_bytes -= dropped
        return modules


def plan_batch(sets: Sequence[AdapterSet], tokens_per_row: int, known: Concatenations) -> BatchPlan | None:
    """Returns the plan of a batch whose row i uses ``sets[i]``; None if all rows use the base.

    Rows that follow one another with the same adapters form a segment. Either each segment multiplies its
    own adapters only, or all rows multiply all adapters in use and zeros cancel the others: whichever costs
    less, unless zeros do not cancel. Both compute sum_i w_i s_i B_i A_i x for each row.
    """
    if not any(sets):
        return None
    segments = _segments(sets)
    distinct = {adapter.digest: adapter for entries in sets for adapter, _ in entries}
    plan = BatchPlan(len(sets))
    can_cancel = all(adapter.is_tame for adapter in distinct.values())
    if len(segments) > 1 and can_cancel and _union_is_cheaper(segments, distinct, tokens_per_row, len(sets)):
        union = tuple(distinct[digest] for digest in sorted(distinct))
        segments = [(0, len(sets), union)]
        plan.is_union = True
    for start, end, adapters in segments:
        if adapters:
            _add_segment(plan, sets, start, end, known.get(adapters), adapters)
    return plan


def plan_of_vectors(plan: BatchPlan, rows: Sequence[int], modules: Iterable[str]) -> BatchPlan:
    """Returns the plan of N single vectors in some modules; vector n is of ``plan``'s row ``rows[n]``.

    ``rows`` ascend; a plan with stacks has one vector of each row.
    """
    if plan.stacks:
        return BatchPlan(plan.rows, {}, {name: plan.stacks[name] for name in modules if name in plan.stacks})
    found = BatchPlan(len(rows))
    coefficients: dict[tuple[int, int, int], Tensor] = {}
    for module in modules:
        for part in plan.parts.get(module, ()):
            start, end = bisect_left(rows, part.start), bisect_left(rows, part.end)
            key = start, end, id(part.coefficients)
            if key not in coefficients:
                own = torch.tensor(rows[start:end], device=part.coefficients.device) - part.start
                coefficients[key] = part.coefficients[own]
            vectors = Part(start, end, part.matrices, coefficients[key])
            found.parts.setdefault(module, []).append(vectors)
    return found


def _segments(sets: Sequence[AdapterSet]) -> list[tuple[int, int, tuple[ResidentAdapter, ...]]]:
    segments: list[tuple[int, int, tuple[ResidentAdapter, ...]]] = []
    for row, entries in enumerate(sets):
        adapters = tuple(adapter for adapter, _ in entries)
        if segments and [a.digest for a in segments[-1][2]] == [a.digest for a in adapters]:
            segments[-1] = (segments[-1][0], row + 1, adapters)
        else:
            segments.append((row, row + 1, adapters))
    return segments


def _union_is_cheaper(
    segments: Sequence[tuple[int, int, tuple[ResidentAdapter, ...]]],
    distinct: Mapping[str, ResidentAdapter],
    tokens_per_row: int,
    rows: int,
) -> bool:
    # An adapter's size is proportional to the operations that one token costs in it: 2 per weight.
    layers = max(len(adapter.modules) for adapter in distinct.values())
    per_token = {digest: adapter.size_bytes / 2 / layers for digest, adapter in distinct.items()}
    union = rows * tokens_per_row * sum(per_token.values())
    split = sum(
        (end - start) * tokens_per_row * sum(per_token[a.digest] for a in adapters)
        for start, end, adapters in segments
    )
    return union - split < (len(segments) - 1) * SEGMENT_FLOPS


def _add_segment(
    plan: BatchPlan,
    sets: Sequence[AdapterSet],
    start: int,
    end: int,
    modules: Mapping[str, Matrices],
    adapters: Sequence[ResidentAdapter],
) -> None:
    place = {adapter.digest: index for index, adapter in enumerate(adapters)}
    weights = [[0.0] * len(adapters) for _ in range(end - start)]
    for row in range(start, end):
        for adapter, weight in sets[row]:
            weights[row - start][place[adapter.digest]] = weight
    sample = next(iter(modules.values())).a
    table = torch.tensor(weights, dtype=sample.dtype, device=sample.device)
    by_layout: dict[tuple[tuple[int, int], ...], Tensor] = {}
    for name, matrices in modules.items():
        if matrices.layout not in by_layout:
            by_layout[matrices.layout] = table[:, matrices.columns]
        part = Part(start, end, matrices, by_layout[matrices.layout])
        plan.parts.setdefault(name, []).append(part)


def _concatenate(adapters: Sequence[ResidentAdapter]) -> dict[str, Matrices]:
    names = sorted({name for adapter in adapters for name in adapter.modules})
    modules: dict[str, Matrices] = {}
    columns_by_layout: dict[tuple[tuple[int, int], ...], Tensor] = {}
    for name in names:
        present = [
            (i, adapter.modules[name]) for i, adapter in enumerate(adapters) if name in adapter.modules
        ]
        layout = tuple((index, matrices.a.shape[0]) for index, matrices in present)
        if layout not in columns_by_layout:
            owners = [index for index, rank in layout for _ in range(rank)]
            columns_by_layout[layout] = torch.tensor(owners, device=present[0][1].a.device)
        modules[name] = Matrices(
            torch.cat([matrices.a for _, matrices in present]),
            torch.cat([matrices.b_t for _, matrices in present]),
            columns_by_layout[layout],
            layout,
        )
    return modules
