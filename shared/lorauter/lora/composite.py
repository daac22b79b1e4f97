"""A weighted set written as one ordinary adapter: ranks side by side, weights and scales inside B."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorauter.errors import FailedPrecondition, UnprocessableRequest
from lorauter.lora.servers import Server
from lorauter.lora.strict import refused
from lorauter.lora.weights import LoraWeights

Weighted = tuple[float, Mapping[str, LoraWeights]]
"""A weight, and the matrices of an adapter by full module name."""


@dataclass(frozen=True, slots=True)
class Composed:
    """The matrices of a composite by full module name, of one rank and scale 1.

    ``error`` is what a truncation lost: the Frobenius norm of the difference over that of the exact sum,
    over all modules together, 0 without truncation; ``errors`` the same by module.
    """

    modules: Mapping[str, LoraWeights]
    rank: int
    error: float = 0.0
    errors: Mapping[str, float] = field(default_factory=dict)


def composed(
    adapters: Sequence[Weighted],
    modules: Mapping[str, tuple[int, int]],
    server: Server,
    truncate_to: int | None = None,
) -> Composed:
    """Returns sum_i w_i s_i B_i A_i as one adapter that ``server`` takes.

    ``modules`` holds (in, out) of the base model's linear layers. Where the ranks sum to more than
    ``truncate_to`` padded, the best approximation of that rank is returned, with its error. Raises
    UnprocessableRequest (NO_ADAPTERS, INVALID_WEIGHT, INVALID_FIELD, ADAPTER_SHAPE_MISMATCH,
    COMPOSITE_RANK_TOO_LARGE, COMPOSITE_LAYER_UNSUPPORTED, COMPOSITE_NOT_FINITE), with ``field`` in the
    metadata and ``position`` where one adapter is to blame, or FailedPrecondition (POOL_MODULES_UNKNOWN).
    """
    server.check_layers(frozenset(_layer(module) for _, adapter in adapters for module in adapter))
    needed = needed_rank(adapters)
    if truncate_to is not None:
        if truncate_to < 1:
            raise refused("INVALID_FIELD", "truncate_to must be at least 1", field="truncate_to")
        if needed > (largest := server.padded(truncate_to)):
            return truncated(concatenated(adapters, modules, needed), largest)
    rank = server.padded(needed)
    return Composed(concatenated(adapters, modules, rank), rank)


def needed_rank(adapters: Sequence[Weighted]) -> int:
    """Returns the largest sum of ranks in any module; raises UnprocessableRequest (NO_ADAPTERS)."""
    sums: dict[str, int] = {}
    for _, adapter in adapters:
        for module, lora in adapter.items():
            sums[module] = sums.get(module, 0) + int(lora.a.shape[0])
    if not sums:
        raise refused("NO_ADAPTERS", "a composition needs at least one adapter", field="adapters")
    return max(sums.values())


def concatenated(
    adapters: Sequence[Weighted], modules: Mapping[str, tuple[int, int]], rank: int
) -> dict[str, LoraWeights]:
    """Returns A (rank, in) and B (out, rank), float32, of every layer whose last name any adapter adapts.

    Rows that no adapter fills are zero, and so are layers: TGI drops a kind of layer that has gaps, and PEFT
    reports missing keys. Raises as composed() does.
    """
    layers = {_layer(module) for _, adapter in adapters for module in adapter}
    result = {
        module: _zeros(rank, width, out)
        for module, (width, out) in modules.items()
        if _layer(module) in layers
    }
    if not modules:
        raise FailedPrecondition(
            "POOL_MODULES_UNKNOWN",
            "the base model's layers are not known: create the pool with base_path or modules",
        )
    ends = dict.fromkeys(result, 0)
    for position, (weight, adapter) in enumerate(adapters):
        _check_weight(weight, position)
        for module, lora in adapter.items():
            if module not in result:
                raise _mismatch(position, f"the base model has no linear layer {module}")
            ends[module] = _place(result[module], ends[module], weight, lora, module, position)
    return result


def truncated(modules: Mapping[str, LoraWeights], rank: int) -> Composed:
    """Returns the nearest adapter of ``rank`` in the Frobenius norm, module by module, with its error.

    Singular values come from the factors, so no matrix of (out, in) is made.
    """
    kept: dict[str, LoraWeights] = {}
    lost: dict[str, tuple[float, float]] = {}
    for module, lora in modules.items():
        b, triangle_b = np.linalg.qr(lora.b.astype(np.float64) * lora.scale)
        a, triangle_a = np.linalg.qr(lora.a.astype(np.float64).T)
        left, values, right = np.linalg.svd(triangle_b @ triangle_a.T, full_matrices=False)
        roots = np.sqrt(values[:rank])
        count = len(roots)
        new = _zeros(rank, lora.a.shape[1], lora.b.shape[0])
        new.a[:count] = roots[:, None] * (right[:count] @ a.T)
        new.b[:, :count] = (b @ left[:, :count]) * roots
        kept[module] = new
        lost[module] = (float(np.sum(values[rank:] ** 2)), float(np.sum(values**2)))
    errors = {module: _ratio(*squares) for module, squares in lost.items()}
    total = _ratio(sum(part for part, _ in lost.values()), sum(whole for _, whole in lost.values()))
    return Composed(kept, rank, total, errors)


def _layer(module: str) -> str:
    return module.rpartition(".")[2]


def _zeros(rank: int, width: int, out: int) -> LoraWeights:
    return LoraWeights(np.zeros((rank, width), np.float32), np.zeros((out, rank), np.float32), 1.0)


def _ratio(lost: float, whole: float) -> float:
    return math.sqrt(lost / whole) if whole > 0 else 0.0


def _place(
    into: LoraWeights, begin: int, weight: float, lora: LoraWeights, module: str, position: int
) -> int:
    """Writes an adapter's rows and weighted columns from ``begin`` on; returns where they end."""
    end = begin + int(lora.a.shape[0])
    have, want = (lora.a.shape[1], lora.b.shape[0]), (into.a.shape[1], into.b.shape[0])
    if have != want:
        raise _mismatch(position, f"{module} is for a layer of (in, out) {have}; the base model's is {want}")
    into.a[begin:end] = lora.a
    into.b[:, begin:end] = _scaled(lora.b, weight * lora.scale, position)
    return end


def _scaled(b: NDArray[np.float32], factor: float, position: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        result: NDArray[np.float32] = (b.astype(np.float64) * factor).astype(np.float32)
    if not np.isfinite(result).all():
        raise refused(
            "COMPOSITE_NOT_FINITE",
            f"the weight of adapter {position} times its scale is {factor:g}, which its weights do not bear",
            field=f"adapters[{position}].weight",
            position=str(position),
        )
    return result


def _check_weight(weight: float, position: int) -> None:
    if not math.isfinite(weight):
        raise refused(
            "INVALID_WEIGHT",
            f"the weight of adapter {position} is {weight}: give a finite number",
            field=f"adapters[{position}].weight",
        )


def _mismatch(position: int, message: str) -> UnprocessableRequest:
    return refused(
        "ADAPTER_SHAPE_MISMATCH",
        f"{message}: are all adapters of this set of one base model?",
        field=f"adapters[{position}]",
        position=str(position),
    )
