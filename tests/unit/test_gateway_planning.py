"""From a decision to what may answer it, and from what a replica can do to what is asked of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorauter.errors import FailedPrecondition, NotFound
from lorauter.gateway.v1.gateway_pb2 import (
    COMPOSITION_BASE,
    COMPOSITION_COMPOSITE,
    COMPOSITION_EXACT,
    COMPOSITION_SINGLE,
    GenerateRequest,
)
from lorauter.router.v1 import router_pb2 as pb
from lorauter_gateway.domain.catalog import Catalog
from lorauter_gateway.domain.model import Target, TargetKind
from lorauter_gateway.domain.names import is_served_name
from lorauter_gateway.domain.plan import (
    Option,
    Skipped,
    WeightedAdapter,
    Why,
    Wish,
    fitted,
    instead,
    members_of,
    not_servable,
    plan_named,
    plan_set,
    served_model,
    wish_base,
    wish_decision,
    wish_pin,
)
from lorauter_gateway.domain.target import parse_target, requested_target

POOLS = [
    pb.PoolSnapshot(pool="p", base_model="org/model", base_model_aliases=["model-alias"]),
    pb.PoolSnapshot(pool="q", base_model="org/other"),
]


def single(name: str, rank: int = 0) -> pb.BestSingle:
    return pb.BestSingle(adapter_id=name, version=1, digest="" if name == "base" else name, rank=rank)


def decided(
    weights: dict[str, float],
    best: str = "",
    action: pb.RouteAction.ValueType = pb.ROUTE_ACTION_ADAPTERS,
    measured: bool = True,
    runners: tuple[str, ...] = (),
) -> pb.RouteResponse:
    adapters = [
        pb.WeightedAdapter(adapter_id=name, version=1, weight=weight, digest="" if name == "base" else name)
        for name, weight in weights.items()
    ]
    return pb.RouteResponse(
        decision_id="d",
        adapters=adapters,
        best_single=single(best),
        action=action,
        measured=measured,
        runners_up=[single(name) for name in runners],
    )


def weights_of(option: Option) -> dict[str, float]:
    return {adapter.adapter_id: adapter.weight for adapter in option.adapters}


def options(wish: Wish) -> list[dict[str, float]]:
    return [weights_of(option) for option in wish]


def ranked(*adapters: tuple[str, float, int]) -> Option:
    return Option(tuple(WeightedAdapter(name, 1, weight, name, rank) for name, weight, rank in adapters))


def test_measured_set_comes_first_then_the_best_the_runners_up_and_the_base() -> None:
    wish = wish_decision(decided({"a": 0.6, "b": 0.4}, best="b", runners=("c", "base", "d")), False)
    assert options(wish) == [{"a": 0.6, "b": 0.4}, {"b": 1.0}, {"c": 1.0}, {}, {"d": 1.0}]
    assert not wish.keeps_decision
    assert wish.first.why is None


def test_base_is_the_last_option_where_no_runner_up_says_otherwise() -> None:
    wish = wish_decision(decided({"a": 1.0}, best="a", runners=("c",)), False)
    assert options(wish) == [{"a": 1.0}, {"c": 1.0}, {}]


def test_best_single_comes_first_and_says_so_where_the_set_was_not_measured() -> None:
    wish = wish_decision(decided({"a": 0.6, "b": 0.4}, best="b", measured=False, runners=("c",)), False)
    assert options(wish) == [{"b": 1.0}, {"c": 1.0}, {}]
    assert wish.first.why is Why.UNMEASURED
    assert "not measured" in plan_set(wish.first).degraded_reason
    onto_base = wish_decision(decided({"a": 0.6, "b": 0.4}, best="base", measured=False), False)
    assert options(onto_base) == [{}]
    assert "not measured" in plan_set(onto_base.first).degraded_reason


def test_policy_that_refuses_leaves_the_decision_alone() -> None:
    assert options(wish_decision(decided({"a": 0.6, "b": 0.4}, best="b", runners=("c",)), True)) == [
        {"a": 0.6, "b": 0.4}
    ]
    unmeasured = wish_decision(decided({"a": 0.6, "b": 0.4}, best="b", measured=False), True)
    assert options(unmeasured) == [{"b": 1.0}]
    assert unmeasured.keeps_decision


def test_one_adapter_is_single_only_at_full_weight() -> None:
    full, half = (wish_decision(decided({"a": w}, best="a"), False).first for w in (1.0, 0.5))
    assert plan_set(full).composition == COMPOSITION_SINGLE
    assert plan_set(half).composition == COMPOSITION_EXACT
    assert plan_named(half, "mix-1").composition == COMPOSITION_COMPOSITE
    assert plan_named(full, "a").composition == COMPOSITION_SINGLE
    assert plan_named(full, "a").served_name == "a"


def test_base_in_a_set_keeps_its_share_and_adds_nothing() -> None:
    plan = plan_set(wish_decision(decided({"a": 0.7, "base": 0.3}, best="a"), False).first)
    assert plan.composition == COMPOSITION_EXACT
    assert len(plan.adapters) == 2
    assert [(a.adapter_id, a.weight) for a in plan.applied] == [("a", 0.7)]


def test_base_is_served_when_the_action_or_the_whole_set_is_the_base() -> None:
    for decision in (decided({"a": 1.0}, action=pb.ROUTE_ACTION_BASE), decided({"base": 1.0}), decided({})):
        assert wish_decision(decision, True) == wish_base()
        plan = plan_set(wish_base().first)
        assert (plan.composition, plan.adapters, plan.degraded_reason) == (COMPOSITION_BASE, (), "")


def test_pin_is_one_option_and_nothing_else() -> None:
    wish = wish_pin(pb.ResolveAdapterResponse(adapter_id="b", version=3, digest="x", rank=8))
    assert list(wish) == [Option((WeightedAdapter("b", 3, 1.0, "x", 8),))]
    assert wish.keeps_decision


def test_refusal_names_the_policys_reason() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        wish_decision(decided({}, action=pb.ROUTE_ACTION_REFUSE), False)
    assert caught.value.reason == "QUERY_REFUSED"
    assert caught.value.metadata == {"decision_id": "d"}


def test_ranks_that_do_not_fit_lose_the_smallest_weights_and_say_which() -> None:
    option = ranked(("a", 0.5, 64), ("b", 0.3, 64), ("c", 0.2, 16))
    found = fitted(option, 128)
    assert weights_of(found) == pytest.approx({"a": 0.625, "b": 0.375})
    assert found.why is Why.TRIMMED
    assert "144" in found.degraded_reason
    assert "c (0.200)" in found.degraded_reason
    one = fitted(option, 64)
    assert weights_of(one) == {"a": 1.0}
    assert one.is_single
    assert fitted(option, 144) is option
    assert fitted(option, 0) is option


def test_adapter_whose_rank_does_not_fit_is_not_served() -> None:
    with pytest.raises(Skipped, match="a is of rank 64; the backend takes 16") as caught:
        fitted(ranked(("a", 1.0, 64)), 16)
    assert caught.value.why is Why.RANK
    assert weights_of(fitted(ranked(("a", 1.0, 16)), 16)) == {"a": 1.0}


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 64)), min_size=1, max_size=6), st.integers(0, 128)
)
def test_what_is_fitted_fits_and_keeps_the_largest_weights(
    parts: list[tuple[float, int]], max_rank: int
) -> None:
    total = sum(weight for weight, _ in parts)
    option = ranked(*((f"a{n}", weight / total, rank) for n, (weight, rank) in enumerate(parts)))
    try:
        found = fitted(option, max_rank)
    except Skipped:
        assert max_rank < max(rank for _, rank in parts)
        return
    assert not max_rank or sum(adapter.rank for adapter in found.adapters) <= max_rank
    assert sum(weights_of(found).values()) == pytest.approx(1.0)
    kept, given_weights = set(weights_of(found)), weights_of(option)
    lost = [adapter for adapter in option.adapters if adapter.adapter_id not in kept]
    assert all(a.rank for a in lost)
    with_rank = [given_weights[a.adapter_id] for a in found.adapters if a.rank]
    assert not lost or not with_rank or max(a.weight for a in lost) <= min(with_rank)


def test_what_replaces_the_first_option_says_why() -> None:
    first = ranked(("a", 0.6, 8), ("b", 0.4, 8))
    skipped = Skipped(Why.NOT_LISTED, "nobody holds it")
    plan = instead(plan_set(ranked(("c", 1.0, 8))), first, skipped)
    assert plan.degraded_reason == "the weighted set is not served: nobody holds it; c@1 replaces it"
    assert plan.why is Why.NOT_LISTED
    on_base = instead(plan_set(Option()), ranked(("a", 1.0, 8)), skipped)
    assert on_base.degraded_reason == "a@1 is not served: nobody holds it; the base replaces it"
    unmeasured = wish_decision(decided({"a": 0.6, "b": 0.4}, best="b", measured=False), False).first
    plan = instead(plan_set(Option()), unmeasured, skipped)
    assert "not measured" in plan.degraded_reason
    assert "b@1 is not served: nobody holds it" in plan.degraded_reason
    assert plan.why is Why.UNMEASURED


def test_what_nobody_serves_is_an_error_that_says_why() -> None:
    pin = wish_pin(pb.ResolveAdapterResponse(adapter_id="b", version=1, digest="b"))
    error = not_servable(pin, Skipped(Why.RANK, "too large a rank"))
    assert (error.reason, error.metadata) == ("ADAPTER_NOT_LOADED", {"adapter_id": "b"})
    assert "too large a rank" in error.message
    refused = wish_decision(decided({"a": 0.6, "b": 0.4}, best="b"), True)
    assert not_servable(refused, None).reason == "COMPOSITION_NOT_SERVABLE"


def test_members_do_not_depend_on_order_or_on_the_last_digits() -> None:
    assert members_of([("b", 0.3333333333), ("a", 0.5)]) == (("a", 0.5), ("b", 0.333333))


def test_catalog_finds_entries_of_both_manifests_by_exact_members() -> None:
    a = pb.ManifestEntry(name="aa", members=[pb.ManifestMember(digest="a", weight=1.0)], rank=8)
    mixed = [pb.ManifestMember(digest="b", weight=0.4), pb.ManifestMember(digest="a", weight=0.6)]
    mix = pb.ManifestEntry(name="mix-1", members=mixed, rank=16)
    again = pb.ManifestEntry(name="mix-2", members=mixed, rank=32)
    catalog = Catalog(
        [pb.Manifest(digest="new", entries=[mix]), pb.Manifest(digest="old", entries=[a, again])]
    )
    assert catalog.version == ("new", "old")
    assert [entry.name for entry in catalog.named((("a", 1.0),))] == ["aa"]
    assert [e.name for e in catalog.named(ranked(("a", 0.6, 8), ("b", 0.4, 8)).members)] == ["mix-1", "mix-2"]
    assert catalog.named((("a", 0.6),)) == []
    assert list(catalog.entries) == ["mix-1", "aa", "mix-2"]


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        ("a" * 64, True),
        ("mix-0123456789abcdef", True),
        ("a" * 63, False),
        ("my-lora", False),
        ("mix-1", False),
    ],
)
def test_names_of_the_store_are_told_from_others(name: str, is_ours: bool) -> None:
    assert is_served_name(name) is is_ours


def test_served_model_names_the_largest_share_first() -> None:
    assert served_model(ranked(("a", 0.4, 8), ("b", 0.6, 8)).adapters, "org/model") == "b+a"
    assert served_model((), "org/model") == "org/model"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("", Target()),
        ("auto", Target()),
        ("tgi", Target()),
        ("dummy", Target()),
        ("auto:q", Target(TargetKind.AUTO, "q")),
        ("base", Target(TargetKind.BASE)),
        ("base:q", Target(TargetKind.BASE, "q")),
        ("org/model", Target(TargetKind.BASE, "p")),
        ("model-alias", Target(TargetKind.BASE, "p")),
        ("org/other", Target(TargetKind.BASE, "q")),
        ("adds", Target(TargetKind.PIN, adapter="adds")),
        ("adds@2", Target(TargetKind.PIN, adapter="adds@2")),
        ("adds@champion", Target(TargetKind.PIN, adapter="adds@champion")),
    ],
)
def test_name_stands_for_a_target(name: str, target: Target) -> None:
    assert parse_target(name, POOLS) == target


@pytest.mark.parametrize("name", ["org/unknown", "adds@", "@1", "two words", "a" * 64, "Big", "x:y"])
def test_name_is_unknown_when_it_can_stand_for_nothing(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        parse_target(name, POOLS)
    assert caught.value.reason == "UNKNOWN_MODEL"


def test_grpc_target_is_the_router_unless_one_is_named() -> None:
    assert requested_target(GenerateRequest(pool="p")) == Target(TargetKind.AUTO, "p")
    assert requested_target(GenerateRequest(pool="p", base=False)) == Target(TargetKind.AUTO, "p")
    assert requested_target(GenerateRequest(pool="p", base=True)) == Target(TargetKind.BASE, "p")
    assert requested_target(GenerateRequest(adapter="a@1")) == Target(TargetKind.PIN, "", "a@1")
