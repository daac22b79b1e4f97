"""From a decision and what a backend can do to what is asked of the backend."""

from __future__ import annotations

import pytest

from lorauter.errors import FailedPrecondition, NotFound
from lorauter.gateway.v1.gateway_pb2 import (
    COMPOSITION_BASE,
    COMPOSITION_EXACT,
    COMPOSITION_SINGLE,
    GenerateRequest,
)
from lorauter.router.v1 import router_pb2 as pb
from lorauter_gateway.domain.model import Target, TargetKind
from lorauter_gateway.domain.plan import Capabilities, plan_decision, plan_pin, served_model
from lorauter_gateway.domain.rotation import Rotation
from lorauter_gateway.domain.target import parse_target, requested_target

ANY = Capabilities(weighted_sets=True)
ONE = Capabilities(weighted_sets=False)
POOLS = [
    pb.PoolSnapshot(pool="p", base_model="org/model", base_model_aliases=["model-alias"]),
    pb.PoolSnapshot(pool="q", base_model="org/other"),
]


def decided(
    weights: dict[str, float],
    best: str = "",
    action: pb.RouteAction.ValueType = pb.ROUTE_ACTION_ADAPTERS,
    measured: bool = True,
) -> pb.RouteResponse:
    adapters = [
        pb.WeightedAdapter(adapter_id=name, version=1, weight=weight, digest="" if name == "base" else name)
        for name, weight in weights.items()
    ]
    single = pb.BestSingle(adapter_id=best, version=1, digest="" if best == "base" else best)
    return pb.RouteResponse(
        decision_id="d", adapters=adapters, best_single=single, action=action, measured=measured
    )


def test_set_is_exact_when_the_backend_takes_sets() -> None:
    plan = plan_decision(decided({"a": 0.6, "b": 0.4}), ANY)
    assert plan.composition == COMPOSITION_EXACT
    assert [(a.adapter_id, a.weight) for a in plan.adapters] == [("a", 0.6), ("b", 0.4)]
    assert plan.degraded_reason == ""


def test_one_adapter_is_single_only_at_full_weight() -> None:
    assert plan_decision(decided({"a": 1.0}), ONE).composition == COMPOSITION_SINGLE
    assert plan_decision(decided({"a": 0.5}), ANY).composition == COMPOSITION_EXACT


def test_base_in_a_set_keeps_its_share_and_adds_nothing() -> None:
    plan = plan_decision(decided({"a": 0.7, "base": 0.3}), ANY)
    assert plan.composition == COMPOSITION_EXACT
    assert len(plan.adapters) == 2
    assert [(a.adapter_id, a.weight) for a in plan.applied] == [("a", 0.7)]


def test_base_is_served_when_the_action_or_the_whole_set_is_the_base() -> None:
    for decision in (decided({"a": 1.0}, action=pb.ROUTE_ACTION_BASE), decided({"base": 1.0}), decided({})):
        plan = plan_decision(decision, ANY)
        assert (plan.composition, plan.adapters, plan.degraded_reason) == (COMPOSITION_BASE, (), "")


def test_best_single_replaces_the_set_and_says_so_when_the_backend_takes_one() -> None:
    plan = plan_decision(decided({"a": 0.6, "b": 0.4}, best="b"), ONE)
    assert plan.composition == COMPOSITION_SINGLE
    assert [(a.adapter_id, a.weight) for a in plan.adapters] == [("b", 1.0)]
    assert "one adapter per request" in plan.degraded_reason
    onto_base = plan_decision(decided({"a": 0.6, "b": 0.4}, best="base"), ONE)
    assert onto_base.composition == COMPOSITION_BASE
    assert onto_base.degraded_reason


def test_best_single_replaces_a_set_that_was_not_measured() -> None:
    for best, composition in (("b", COMPOSITION_SINGLE), ("base", COMPOSITION_BASE)):
        plan = plan_decision(decided({"a": 0.6, "b": 0.4}, best=best, measured=False), ANY)
        assert plan.composition == composition
        assert [a.adapter_id for a in plan.applied] == ([] if best == "base" else ["b"])
        assert "not measured" in plan.degraded_reason


def test_missing_adapter_is_an_error_and_never_the_base() -> None:
    loaded = Capabilities(weighted_sets=False, adapters=frozenset({"a"}))
    assert plan_decision(decided({"a": 1.0}), loaded).composition == COMPOSITION_SINGLE
    with pytest.raises(FailedPrecondition) as caught:
        plan_decision(decided({"b": 1.0}), loaded)
    assert caught.value.reason == "ADAPTER_NOT_LOADED"
    with pytest.raises(FailedPrecondition):
        plan_pin(pb.ResolveAdapterResponse(adapter_id="b", version=1, digest="b"), loaded)


def test_refusal_names_the_policys_reason() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        plan_decision(decided({}, action=pb.ROUTE_ACTION_REFUSE), ANY)
    assert caught.value.reason == "QUERY_REFUSED"
    assert caught.value.metadata == {"decision_id": "d"}


def test_served_model_names_the_largest_share_first() -> None:
    plan = plan_decision(decided({"a": 0.4, "b": 0.6}), ANY)
    assert served_model(plan.adapters, "org/model") == "b+a"
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


def test_rotation_takes_turns_within_each_group() -> None:
    rotation = Rotation()
    assert [rotation.order("p", ["a", "b", "c"])[0] for _ in range(4)] == ["a", "b", "c", "a"]
    assert rotation.order("q", ["x", "y"]) == ["x", "y"]
    assert rotation.order("q", []) == []


def test_rotation_puts_failed_members_last_and_never_away() -> None:
    rotation = Rotation()
    rotation.fail("a")
    assert [rotation.order("p", ["a", "b"]) for _ in range(2)] == [["b", "a"]] * 2
    rotation.fail("b")
    assert sorted(rotation.order("p", ["a", "b"])) == ["a", "b"]
    rotation.restore("a")
    assert rotation.order("p", ["a", "b"])[0] == "a"
