"""Faster ways to compute a layer compute the same: packed weights, stacked adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorauter_engine.model.layers import AdaptedLinear, BatchContext
from lorauter_engine.model.packed import PackedLinear, packed
from lorauter_engine.model.plan import (
    AdapterSet,
    BatchPlan,
    Concatenations,
    Matrices,
    ResidentAdapter,
    plan_batch,
)
from lorauter_engine.model.stacks import Stacks

LAYERS = {"first": (512, 600), "second": (512, 40)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
def test_packed_layers_compute_the_same(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Conv1D(600, 512) if kind == "conv1d" else nn.Linear(512, 600, bias=kind == "linear")
    layer = layer.to(dtype).requires_grad_(False)
    made = packed(layer)
    # A processor without bfloat16 keeps the layer; what it computes is the same.
    assert isinstance(made, PackedLinear) or dtype is torch.bfloat16
    with torch.inference_mode():
        for shape in [(1, 1, 512), (3, 7, 512), (64, 1, 512)]:
            x = torch.randn(shape).to(dtype)
            expected = layer.double()(x.double())
            layer.to(dtype)
            bound = 1e-4 if dtype is torch.float32 else 2e-2
            assert (made(x).double() - expected).abs().max() < bound * expected.abs().max()


def test_layers_stay_as_they_are_when_packing_does_not_pay() -> None:
    small, halved = nn.Linear(64, 64), nn.Linear(512, 600).half()
    assert packed(small) is small
    assert packed(halved) is halved


def adapter(number: int, rank: int, layers: tuple[str, ...]) -> ResidentAdapter:
    generator = torch.Generator().manual_seed(number)

    def matrices(width: int, out: int) -> Matrices:
        return Matrices(
            torch.randn(rank, width, generator=generator) / width**0.5,
            torch.randn(rank, out, generator=generator),
            torch.zeros(rank, dtype=torch.long),
            ((0, rank),),
        )

    modules = {name: matrices(*LAYERS[name]) for name in layers}
    size = sum(m.a.nbytes + m.b_t.nbytes for m in modules.values())
    # What is not tame is laid out in segments, however small.
    return ResidentAdapter(f"sha256:{number:064}", modules, size, is_tame=False)


ADAPTERS = [
    adapter(number, rank, layers)
    for number, (rank, layers) in enumerate(
        [(4, ("first", "second")), (6, ("first",)), (5, ("second",)), (4, ("first", "second"))] * 4
    )
]


def draw(rng: np.random.Generator) -> AdapterSet:
    chosen = sorted(rng.choice(len(ADAPTERS), size=rng.integers(2, 4), replace=False))
    return tuple((ADAPTERS[number], float(rng.normal())) for number in chosen)


def outputs(layers: dict[str, AdaptedLinear], plan: BatchPlan, x: torch.Tensor) -> dict[str, torch.Tensor]:
    for layer in layers.values():
        layer.context.plan = plan
    return {name: layer(x) for name, layer in layers.items()}


def test_stacked_plans_compute_the_same_when_rows_come_and_go() -> None:
    rng = np.random.default_rng(0)
    layers = {
        name: AdaptedLinear(nn.Linear(*shape).requires_grad_(False), name, BatchContext())
        for name, shape in LAYERS.items()
    }
    stacks, sets, stacked_plans = Stacks(2**24), [draw(rng) for _ in range(12)], 0
    for _ in range(60):
        match rng.integers(3):
            case 0 if len(sets) > 6:
                sets[rng.integers(len(sets))] = sets[-1]
                sets.pop()
            case 1:
                sets.append(draw(rng))
            case _:
                sets[rng.integers(len(sets))] = () if rng.random() < 0.1 else draw(rng)
        plan = plan_batch(sets, 1, Concatenations(2**24))
        assert plan is not None
        if stacks.worth_after(plan, sets) is None:
            continue
        stacked_plans += 1
        made = stacks.stacked(plan, sets)
        assert set(made.stacks) == set(LAYERS)
        x = torch.randn(len(sets), 1, 512)
        with torch.inference_mode():
            expected, found = outputs(layers, plan, x), outputs(layers, made, x)
        for name in LAYERS:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    assert stacked_plans > 30


def test_stacking_waits_when_much_has_changed_and_is_left_when_it_does_not_pay() -> None:
    rng = np.random.default_rng(1)
    sets = [draw(rng) for _ in range(16)]

    def worth(stacks: Stacks, sets: list[AdapterSet]) -> int | None:
        plan = plan_batch(sets, 1, Concatenations(2**24))
        assert plan is not None
        return stacks.worth_after(plan, sets)

    stacks = Stacks(2**24)
    assert worth(stacks, sets) == 3
    plan = plan_batch(sets, 1, Concatenations(2**24))
    assert plan is not None
    stacks.stacked(plan, sets)
    assert worth(stacks, [*sets[:15], draw(rng)]) == 1
    assert worth(stacks, [sets[0]] * 8 + [sets[1]] * 8) is None, "rows share their adapters"
    assert worth(Stacks(1000), sets) is None, "the limit is below what it takes"
