"""A conversation keeps what served it where a change gains next to nothing, and only there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lorauter.router.v1 import router_pb2 as pb
from lorauter_gateway.domain.plan import WeightedAdapter, wish_decision
from lorauter_gateway.domain.stickiness import Stickiness, conversation_key

TURNS = [("system", "be brief"), ("user", "what is it"), ("assistant", "this"), ("user", "and that")]
BASE = pb.BestSingle(adapter_id="base", expected_utility=0.5)


def single(name: str, utility: float, version: int = 1) -> pb.BestSingle:
    """An adapter and what is expected of it."""
    digest = f"sha256:{name}{version}"
    return pb.BestSingle(adapter_id=name, version=version, digest=digest, rank=8, expected_utility=utility)


def decided(best: pb.BestSingle, *others: pb.BestSingle, weights=(), **fields) -> pb.RouteResponse:
    """A decision for the best, or for a weighted set of the first ones."""
    decision = pb.RouteResponse(
        decision_id="d",
        pool="main",
        best_single=best,
        runners_up=others,
        **{"action": pb.ROUTE_ACTION_ADAPTERS, "measured": True, **fields},
    )
    for each, weight in zip((best, *others), weights or [1.0], strict=False):
        if each.digest:
            decision.adapters.add(
                adapter_id=each.adapter_id, version=each.version, weight=weight, digest=each.digest, rank=8
            )
    return decision


def request(turns=TURNS, **fields) -> pb.RouteRequest:
    """A conversation to route."""
    messages = [pb.ChatMessage(role=role, content=content) for role, content in turns]
    return pb.RouteRequest(messages=messages, **fields)


def served(*arms: tuple[pb.BestSingle, float]) -> list[WeightedAdapter]:
    """What served a turn."""
    return [WeightedAdapter(a.adapter_id, a.version, weight, a.digest, a.rank) for a, weight in arms]


A, B = single("a", 0.90), single("b", 0.89)


def after(former, turns=TURNS[:2], **fields) -> Stickiness:
    """A memory of a conversation whose first turn something served."""
    memory = Stickiness(**fields)
    memory.served(memory.choose(request(turns), decided(A, B)).key, former)
    return memory


def first_option(decision: pb.RouteResponse) -> list[str]:
    """The adapters of what is served first."""
    return [adapter.adapter_id for adapter in wish_decision(decision, False).first.adapters]


def test_a_conversation_keeps_what_served_it_when_a_change_gains_little() -> None:
    choice = after(served((B, 1.0))).choose(request(), decided(A, B, BASE))
    assert choice.decision.best_single == B
    assert [(each.adapter_id, each.weight, each.rank) for each in choice.decision.adapters] == [("b", 1.0, 8)]
    assert [each.adapter_id for each in choice.decision.runners_up] == ["a", "base"]
    assert first_option(choice.decision) == ["b"]
    assert "keeps b@1" in choice.reason
    assert "0.010 against a@1" in choice.reason
    assert (choice.decision.decision_id, choice.decision.pool) == ("d", "main")


def test_it_changes_when_the_gain_is_worth_it() -> None:
    decision = decided(A, single("b", 0.87))
    choice = after(served((single("b", 0.87), 1.0))).choose(request(), decision)
    assert choice.decision is decision
    assert choice.reason == ""
    wide = after(served((B, 1.0)), margin=0.05).choose(request(), decision)
    assert wide.decision.best_single.adapter_id == "b"


def test_nothing_is_kept_before_an_assistant_has_answered() -> None:
    decision = decided(A, B)
    assert after(served((B, 1.0))).choose(request(TURNS[:2]), decision).decision is decision


@pytest.mark.parametrize(
    "decision",
    [
        decided(B, A),
        decided(A, single("c", 0.9)),
        decided(A, single("b", 0.9, version=2)),
        decided(A, B, action=pb.ROUTE_ACTION_BASE),
        decided(A, B, action=pb.ROUTE_ACTION_REFUSE),
        decided(BASE, action=pb.ROUTE_ACTION_BASE),
    ],
    ids=["same", "unknown", "other version", "base by policy", "refused", "bare base"],
)
def test_the_decision_stands_when_there_is_nothing_to_keep(decision) -> None:
    choice = after(served((B, 1.0))).choose(request(), decision)
    assert choice.decision is decision
    assert choice.reason == ""


def test_the_base_is_kept_too() -> None:
    close = pb.BestSingle(adapter_id="base", expected_utility=0.89)
    choice = after([]).choose(request(), decided(A, B, close))
    assert choice.decision.best_single.adapter_id == "base"
    assert first_option(choice.decision) == []
    assert "keeps the base" in choice.reason
    far = decided(A, B, BASE)
    assert after([]).choose(request(), far).decision is far


def test_a_conversation_that_began_with_one_adapter_goes_on_without_the_composite() -> None:
    decision = decided(A, B, weights=(0.6, 0.4))
    choice = after(served((A, 1.0))).choose(request(), decision)
    assert first_option(choice.decision) == ["a"]
    assert "against the weighted set" in choice.reason
    told = decided(A, B, weights=(0.6, 0.4))
    told.explanation.compositions.add(expected_utility=0.97, served=True)
    assert after(served((A, 1.0))).choose(request(), told).decision is told


def test_a_set_is_kept_only_where_it_is_decided_again() -> None:
    former = served((A, 0.6), (B, 0.4))
    same = decided(A, B, weights=(0.6, 0.4))
    assert after(former).choose(request(), same).decision is same
    for decision in (decided(A, B), decided(A, B, weights=(0.5, 0.5)), decided(A, B, measured=False)):
        assert after(former).choose(request(), decision).decision is decision


def test_a_set_that_was_not_measured_is_not_what_would_be_served() -> None:
    decision = decided(A, B, weights=(0.6, 0.4), measured=False)
    assert after(served((A, 1.0))).choose(request(), decision).decision is decision
    assert first_option(after(served((B, 1.0))).choose(request(), decision).decision) == ["b"]


def test_what_is_kept_is_what_served_last() -> None:
    memory = after(served((B, 1.0)))
    choice = memory.choose(request(), decided(A, B))
    memory.served(choice.key, served((A, 1.0)))
    again = memory.choose(request([*TURNS, ("assistant", "x"), ("user", "y")]), decided(A, B))
    assert again.decision.best_single == A
    assert again.reason == ""


def test_other_conversations_and_restrictions_have_other_keys() -> None:
    key = conversation_key(request(), "main")
    assert key == conversation_key(request(TURNS[:2]), "main")
    assert key == conversation_key(request(explain=True, min_generation="g0", pool="main"), "main")
    assert conversation_key(request(tags=["x", "y"]), "m") == conversation_key(request(tags=["y", "x"]), "m")
    others = [
        conversation_key(request(), "other"),
        conversation_key(request([("system", "be long"), *TURNS[1:]]), "main"),
        conversation_key(request([TURNS[0], ("user", "else"), *TURNS[2:]]), "main"),
        conversation_key(request(strategy="paper"), "main"),
        conversation_key(request(max_adapters=1), "main"),
        conversation_key(request(tags=["x"]), "main"),
        conversation_key(request(exclude_tasks=["x"]), "main"),
        conversation_key(request(exclude_adapters=["x"]), "main"),
        conversation_key(request(tenant="x"), "main"),
    ]
    assert None not in others
    assert len({key, *others}) == len(others) + 1


@pytest.mark.parametrize(
    "bare", [pb.RouteRequest(query="what is it"), request([("assistant", "hello")]), request([("user", " ")])]
)
def test_what_is_no_conversation_is_not_remembered(bare) -> None:
    memory = Stickiness()
    decision = decided(A, B)
    choice = memory.choose(bare, decision)
    assert choice.key is None
    assert choice.decision is decision
    memory.served(choice.key, served((B, 1.0)))
    assert len(memory) == 0


def test_the_least_recently_used_conversations_are_forgotten() -> None:
    memory = Stickiness(most=2)
    keys = [b"1", b"2", b"1", b"3"]
    for key in keys:
        memory.served(key, served((B, 1.0)))
    assert len(memory) == 2
    held = after(served((B, 1.0)), most=1)
    held.served(b"other", [])
    assert held.choose(request(), decided(A, B)).reason == ""


def test_a_conversation_is_forgotten_after_a_while() -> None:
    now = [0.0]
    memory = after(served((B, 1.0)), kept_seconds=60.0, clock=lambda: now[0])
    now[0] = 60.0
    assert memory.choose(request(), decided(A, B)).reason
    now[0] = 60.5
    assert memory.choose(request(), decided(A, B)).reason == ""


def test_it_loads_neither_numpy_nor_torch() -> None:
    code = "import sys, lorauter_gateway.domain.stickiness; print({'numpy', 'torch'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"
