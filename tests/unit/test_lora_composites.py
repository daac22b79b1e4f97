"""Composites as arrays: the exact sum in one adapter, its rank, its rounding, its name, what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorauter.errors import FailedPrecondition, InvalidArgument, LorauterError, UnprocessableRequest
from lorauter.lora.compose import compose_delta
from lorauter.lora.composite import Weighted, composed, concatenated, truncated
from lorauter.lora.precision import rounded
from lorauter.lora.recipe import MAX_MEMBERS, Base, Recipe, make_recipe
from lorauter.lora.servers import Server, peft, tgi, vllm
from lorauter.lora.weights import LoraWeights

Q0, Q1, V0, V1 = (f"model.layers.{n}.self_attn.{name}_proj" for name in "qv" for n in (0, 1))
HEAD = "lm_head"
MODULES = {Q0: (8, 8), Q1: (8, 8), V0: (8, 4), V1: (8, 4), HEAD: (8, 16)}
BASE = Base("demo/base", "sha256:1", MODULES)


def lora(seed: int, rank: int, *modules: str, scale: float = 2.0) -> dict[str, LoraWeights]:
    rng = np.random.default_rng(seed)
    return {
        module: LoraWeights(
            rng.normal(size=(rank, MODULES[module][0])).astype(np.float32),
            rng.normal(size=(MODULES[module][1], rank)).astype(np.float32),
            scale,
        )
        for module in modules
    }


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def reason(error: type[LorauterError], call: Callable[[], object]) -> tuple[str, str | None]:
    with pytest.raises(error) as caught:
        call()
    return caught.value.reason, caught.value.metadata.get("field")


def largest_difference(adapters: Sequence[Weighted], modules: dict[str, LoraWeights]) -> float:
    exact, ours = compose_delta(adapters), compose_delta([(1.0, modules)])
    assert set(exact) <= set(ours)
    return max(float(np.abs(ours[name] - exact.get(name, 0.0)).max()) for name in ours)


def test_a_composite_is_the_sum_when_ranks_scales_and_targets_differ() -> None:
    adapters = [
        (0.5, lora(1, 3, Q0, V1)),
        (-2.0, lora(2, 5, Q0, Q1, scale=0.125)),
        (0.0, lora(3, 2, V0)),
        (0.25, lora(4, 1, V0, V1)),
    ]
    result = composed(adapters, MODULES, peft())
    assert result.rank == 8
    assert largest_difference(adapters, dict(result.modules)) < 1e-6
    assert result.error == 0.0
    assert result.errors == {}


def test_layers_and_rows_are_zero_when_nobody_fills_them() -> None:
    result = composed([(1.0, lora(1, 3, Q0)), (1.0, lora(2, 2, V1))], MODULES, vllm(16))
    assert set(result.modules) == {Q0, Q1, V0, V1}
    assert result.rank == 8
    for module, each in result.modules.items():
        width, out = MODULES[module]
        assert each.a.shape == (8, width)
        assert each.b.shape == (out, 8)
        assert each.a.dtype == each.b.dtype == np.float32
        assert each.scale == 1.0
    assert not result.modules[Q1].a.any()
    assert not result.modules[V0].b.any()
    assert not result.modules[Q0].a[3:].any()
    assert not result.modules[Q0].b[:, 3:].any()


@pytest.mark.parametrize(
    ("server", "ranks"),
    [
        (peft(), {1: 1, 7: 7, 512: 512}),
        (vllm(), {1: 8, 8: 8, 9: 16, 16: 16}),
        (vllm(512), {17: 32, 65: 128, 129: 256, 257: 320, 321: 512}),
        (tgi(), {1: 8, 9: 16, 17: 32, 33: 64, 65: 128, 96: 128}),
        (tgi(2), {1: 16, 17: 32}),
        (tgi(4), {1: 32, 33: 64}),
        (tgi(16), {1: 128}),
    ],
)
def test_a_rank_is_padded_to_what_the_kernels_of_a_server_take(server: Server, ranks: dict[int, int]) -> None:
    assert {rank: server.padded(rank) for rank in ranks} == ranks
    with pytest.raises(UnprocessableRequest) as caught:
        server.padded(server.max_rank + 1)
    assert caught.value.reason == "COMPOSITE_RANK_TOO_LARGE"
    assert caught.value.metadata == {
        "field": "adapters",
        "rank": str(server.max_rank + 1),
        "max_rank": str(server.max_rank),
    }


@pytest.mark.parametrize("make", [lambda: vllm(24), lambda: vllm(0), lambda: tgi(0), lambda: tgi(17)])
def test_a_server_is_refused_when_none_runs_so(make: Callable[[], Server]) -> None:
    assert reason(InvalidArgument, make)[0] == "INVALID_FIELD"


def test_a_truncation_is_the_best_of_its_rank_and_tells_its_error() -> None:
    adapters = [(0.7, lora(1, 6, Q0, V0)), (-0.2, lora(2, 7, Q0)), (1.3, lora(3, 2, V1))]
    result = composed(adapters, MODULES, vllm(64), truncate_to=5)
    assert result.rank == 8
    result = truncated(concatenated(adapters, MODULES, 13), 3)
    assert result.rank == 3
    exact, ours = compose_delta(adapters), compose_delta([(1.0, result.modules)])
    lost = whole = 0.0
    for module, delta in exact.items():
        left, values, right = np.linalg.svd(delta)
        best = (left[:, :3] * values[:3]) @ right[:3]
        assert np.allclose(ours[module], best, atol=1e-5)
        difference, norm = (float((m**2).sum()) for m in (ours[module] - delta, delta))
        assert result.errors[module] == pytest.approx((difference / norm) ** 0.5, rel=1e-4, abs=1e-6)
        lost, whole = lost + difference, whole + norm
    assert result.errors[Q1] == 0.0
    assert result.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert result.error > 0.1


def test_nothing_is_truncated_when_the_padded_rank_holds_it() -> None:
    adapters = [(1.0, lora(1, 4, Q0)), (1.0, lora(2, 3, Q0))]
    result = composed(adapters, MODULES, tgi(), truncate_to=5)
    assert (result.rank, result.error) == (8, 0.0)
    assert largest_difference(adapters, dict(result.modules)) < 1e-6


def test_nothing_is_truncated_when_nobody_allowed_it() -> None:
    adapters = [(1.0, lora(n, 64, Q0)) for n in range(3)]
    assert reason(UnprocessableRequest, lambda: composed(adapters, MODULES, tgi()))[0] == (
        "COMPOSITE_RANK_TOO_LARGE"
    )
    assert composed(adapters, MODULES, tgi(), truncate_to=128).error < 1e-6


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_is_refused_when_it_is_no_number(weight: float) -> None:
    adapters = [(1.0, lora(1, 2, Q0)), (weight, lora(2, 2, Q0))]
    wanted = ("INVALID_WEIGHT", "adapters[1].weight")
    assert reason(UnprocessableRequest, lambda: composed(adapters, MODULES, peft())) == wanted
    weighted = [(digest(1), 1.0), (digest(2), weight)]
    assert reason(UnprocessableRequest, lambda: make_recipe(BASE, weighted, peft())) == wanted


def test_a_weight_is_refused_when_no_float32_holds_what_it_makes() -> None:
    adapters = [(1.0, lora(1, 2, Q0)), (-1e38, lora(2, 2, Q0, scale=1e4))]
    wanted = ("COMPOSITE_NOT_FINITE", "adapters[1].weight")
    assert reason(UnprocessableRequest, lambda: composed(adapters, MODULES, peft())) == wanted


def test_a_set_is_refused_when_it_is_empty_or_all_zero_or_too_large() -> None:
    empty = ("NO_ADAPTERS", "adapters")
    assert reason(UnprocessableRequest, lambda: composed([], MODULES, peft())) == empty
    many = [(digest(n), 1.0) for n in range(MAX_MEMBERS + 1)]
    for weights in ([], [0.0], [0.5, -0.5], [1e-9]):
        nothing = [(digest(1), weight) for weight in weights]
        assert reason(UnprocessableRequest, partial(make_recipe, BASE, nothing, peft())) == empty
    too_many = ("TOO_MANY_ADAPTERS", "adapters")
    assert reason(UnprocessableRequest, lambda: make_recipe(BASE, many, peft())) == too_many
    assert len(make_recipe(BASE, many[1:], peft()).members) == MAX_MEMBERS


def test_a_set_is_refused_when_its_adapters_are_of_other_bases() -> None:
    of_another = {Q0: LoraWeights(np.zeros((2, 16), np.float32), np.zeros((8, 2), np.float32), 1.0)}
    wanted = ("ADAPTER_SHAPE_MISMATCH", "adapters[1]")
    adapters = [(1.0, lora(1, 2, Q0)), (1.0, of_another)]
    assert reason(UnprocessableRequest, lambda: composed(adapters, MODULES, peft())) == wanted
    deeper = {"model.layers.9.self_attn.q_proj": lora(1, 2, Q0)[Q0]}
    adapters = [(1.0, lora(1, 2, Q0)), (1.0, deeper)]
    assert reason(UnprocessableRequest, lambda: composed(adapters, MODULES, peft())) == wanted


def test_other_fields_are_refused_by_name() -> None:
    one = [(1.0, lora(1, 2, Q0))]
    assert reason(UnprocessableRequest, lambda: composed(one, MODULES, peft(), truncate_to=0)) == (
        "INVALID_FIELD",
        "truncate_to",
    )
    assert reason(UnprocessableRequest, lambda: composed([(1.0, lora(1, 2, HEAD))], MODULES, tgi())) == (
        "COMPOSITE_LAYER_UNSUPPORTED",
        "adapters",
    )
    assert HEAD in composed([(1.0, lora(1, 2, HEAD))], MODULES, vllm()).modules
    precision = lambda: make_recipe(BASE, [(digest(1), 1.0)], peft(), "int8")  # type: ignore[arg-type]  # noqa: E731
    assert reason(UnprocessableRequest, precision) == ("INVALID_FIELD", "precision")
    assert reason(InvalidArgument, lambda: make_recipe(BASE, [("mix-1", 1.0)], peft()))[0] == "INVALID_DIGEST"
    assert reason(FailedPrecondition, lambda: composed(one, {}, peft()))[0] == "POOL_MODULES_UNKNOWN"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_bfloat16_is_the_nearest_ties_to_even(values: list[float]) -> None:
    import ml_dtypes

    matrix = np.array([values], dtype=np.float32)
    with np.errstate(over="ignore"):
        expected = matrix.astype(ml_dtypes.bfloat16)
    if np.isfinite(expected.astype(np.float32)).all():
        assert (rounded(matrix, "bfloat16") == expected.view(np.uint16)).all()
    else:
        with pytest.raises(UnprocessableRequest):
            rounded(matrix, "bfloat16")


@pytest.mark.parametrize(
    ("precision", "value"),
    [
        ("float32", np.inf),
        ("float32", np.nan),
        ("float16", 65520.0),
        ("bfloat16", 3.4e38),
        ("bfloat16", np.nan),
    ],
)
def test_rounding_is_refused_when_it_would_not_be_finite(precision, value: float) -> None:
    call = lambda: rounded(np.array([[1.0, value]], np.float32), precision)  # noqa: E731
    assert reason(UnprocessableRequest, call) == ("COMPOSITE_NOT_FINITE", "precision")


WEIGHTED = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 99)), min_size=1, max_size=8)


@given(WEIGHTED, st.randoms())
def test_a_name_is_the_same_when_the_set_is_the_same(weighted: list[tuple[int, int]], random) -> None:
    pairs = [(digest(number), weight / 100) for number, weight in weighted]
    recipe = make_recipe(BASE, pairs, tgi())
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert make_recipe(BASE, shuffled, tgi()) == recipe
    halves = [(each, weight / 2) for each, weight in pairs for _ in range(2)]
    assert make_recipe(BASE, halves, tgi()).name == recipe.name
    assert recipe.name.startswith("mix-")
    assert len(recipe.name) == 20


def test_a_name_is_another_when_anything_that_decides_the_content_is() -> None:
    pairs = [(digest(1), 0.62), (digest(2), 0.38)]

    def name(base: Base = BASE, pairs: Sequence[tuple[str, float]] = pairs, **options) -> Recipe:
        return make_recipe(base, pairs, **{"server": tgi(), **options})

    recipes = [
        name(),
        name(server=vllm(128)),
        name(server=tgi(2)),
        name(precision="float32"),
        name(truncate_to=8),
        name(pairs=[(digest(1), 0.38), (digest(2), 0.62)]),
        name(pairs=[*pairs, (digest(3), 1e-6)]),
        name(dataclasses.replace(BASE, model="other")),
        name(dataclasses.replace(BASE, digest="sha256:2")),
        name(dataclasses.replace(BASE, modules={**MODULES, Q1: (8, 9)})),
    ]
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    assert name(pairs=[(digest(1), 0.62 + 1e-9), (digest(2), 0.38)]) == recipes[0]
    single = np.array([0.62, 0.38], np.float32)
    assert name(pairs=[(digest(1), single[0]), (digest(2), single[1])]).name == recipes[0].name
