"""What else may serve where the best single adapter cannot: the next in expected utility, and the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from lorauter.routing import Action, Decision, RouteOptions, compile_pool, decide
from lorauter.routing.fitting import TYPICALITY_LEVELS, make_profile, typicality_name
from lorauter.routing.model import Adapter, Affinity, Composition, Pool, Task

AXES = np.eye(4, dtype=np.float32)
QUERY = np.array([0.8, 0.6, 0.0, 0.0], dtype=np.float32)
SCORES: dict[str, Mapping[str, float]] = {
    "t1": {"a": 0.9, "d": 0.81, "b": 0.3, "base": 0.2},
    "t2": {"b": 0.8, "d": 0.64, "a": 0.4, "base": 0.1},
    "t3": {"c": 0.5, "base": 0.6},
}


def pool(
    scores: Mapping[str, Mapping[str, float]] = SCORES, policy: str = "ROUTE", known: float = -10.0
) -> Pool:
    """A pool whose known queries all score ``known`` or more; its adapters' ranks tell them apart."""
    tasks = tuple(
        Task(
            name, 1, "exact_match", frozenset({name}), 20, 3 * AXES[place], {},
            tuple(Affinity(id_, int(id_ != "base"), score, 20, 0.1) for id_, score in theirs.items()),
        )
        for place, (name, theirs) in enumerate(scores.items())
    )  # fmt: skip
    levels = {
        typicality_name(level, of): known + level
        for level in TYPICALITY_LEVELS
        for of in ("similarity", "score")
    }
    names = sorted({"z", *(name for theirs in scores.values() for name in theirs)} - {"base"})
    adapters = (Adapter(name, 1, f"sha256:{name}", True, rank=8 + place) for place, name in enumerate(names))
    return Pool(
        "p", "m", (), policy, make_profile({"dense_weight": 5.0, **levels}, {}), tasks, tuple(adapters), ()
    )


def names(decision: Decision) -> list[str]:
    return [arm.adapter_id for arm, _ in decision.runners_up]


@pytest.mark.parametrize("strategy", ["default", "paper"])
def test_runners_up_are_all_other_known_arms_by_expected_utility(strategy: str) -> None:
    decision = decide(pool(), QUERY, RouteOptions(strategy=strategy, explain=True))
    assert decision.action is Action.ADAPTERS
    utilities = {one.adapter_id: one.expected_utility for one in decision.explanation.candidates}
    best = decision.best_single.adapter_id
    assert utilities.pop(best) == decision.expected_utility
    utilities.setdefault("base", 0.0)
    assert names(decision) == sorted(utilities, key=lambda name: -utilities[name])
    assert {arm.adapter_id: worth for arm, worth in decision.runners_up} == utilities


def test_arms_carry_version_digest_and_rank() -> None:
    decision = decide(pool(), QUERY)
    arms = {arm.adapter_id: arm for arm in (decision.best_single, *(arm for arm, _ in decision.runners_up))}
    ranks = {name: (arm.version, arm.digest, arm.rank) for name, arm in arms.items()}
    assert ranks == {
        "base": (0, "", 0),
        "a": (1, "sha256:a", 8),
        "b": (1, "sha256:b", 9),
        "c": (1, "sha256:c", 10),
        "d": (1, "sha256:d", 11),
    }


def test_eight_at_most_are_named_and_they_are_the_best() -> None:
    scores = {f"a{place:03d}": 1.0 - place / 1_000 for place in range(300)}
    decision = decide(pool({"t1": scores | {"base": 0.1}}), QUERY)
    assert decision.best_single.adapter_id == "a000"
    assert names(decision) == [f"a{place:03d}" for place in range(1, 9)]


def test_equal_ones_are_the_base_then_the_likeliest_tasks_own_then_as_it_lists_them() -> None:
    tied = {"best": 0.9, "k": 0.5, "j": 0.5, "t1": 0.5, "base": 0.5, "i": 0.5}
    decision = decide(pool({"t1": tied}), QUERY)
    assert names(decision) == ["base", "t1", "k", "j", "i"]
    many = {f"a{place:02d}": 0.5 for place in reversed(range(50))}
    decision = decide(pool({"t1": {"best": 0.9, "next": 0.8, **many, "t1": 0.5, "base": 0.5}}), QUERY)
    assert names(decision) == ["next", "base", "t1", "a49", "a48", "a47", "a46", "a45"]


def test_equal_ones_that_the_likeliest_task_does_not_list_come_by_row() -> None:
    scores = {
        "t1": {"best": 1.0, "k": 0.5},
        "t2": {"best": 1.0, **{f"a{place:02d}": 0.5 for place in reversed(range(20))}},
    }
    even = (AXES[0] + AXES[1]) / np.sqrt(np.float32(2))
    decision = decide(pool(scores), even)
    assert names(decision) == ["k", *(f"a{place:02d}" for place in range(7))]


def test_runners_up_are_no_part_of_what_the_request_excludes() -> None:
    excluded = frozenset({"d", "base"})
    decision = decide(pool(), QUERY, RouteOptions(exclude_adapters=excluded))
    assert decision.action is Action.ADAPTERS
    assert excluded.isdisjoint(names(decision))
    assert {"b", "c"} <= {*names(decision), decision.best_single.adapter_id}


def test_unmeasured_adapters_are_never_runners_up_but_the_base_is() -> None:
    decision = decide(pool({"t1": {"a": 0.9}}), QUERY)
    assert [(arm.adapter_id, worth) for arm, worth in decision.runners_up] == [("base", 0.0)]


def test_the_best_single_is_left_out_where_a_composition_is_served() -> None:
    made = pool({"t1": {"a": 0.9, "b": 0.8, "base": 0.1}})
    composition = Composition("mix", (("a", 1, 0.5), ("b", 1, 0.5)), 1.0, 20, 0.01, 0.1, 0.01)
    made = replace(made, tasks=(replace(made.tasks[0], compositions=(composition,)),))
    decision = decide(made, QUERY)
    assert len(decision.adapters) == 2
    assert (decision.best_single.adapter_id, names(decision)) == ("a", ["b", "base"])


def test_there_are_none_when_no_adapter_is_to_be_served() -> None:
    base = decide(pool({"t1": {"base": 0.9, "a": 0.5}}), QUERY)
    assert (base.action, base.runners_up) == (Action.BASE, ())
    for policy, action in (("REFUSE", Action.REFUSE), ("BASE", Action.BASE)):
        untypical = decide(pool(policy=policy, known=10.0), QUERY)
        assert (untypical.action, untypical.runners_up) == (action, ())
    assert decide(pool(), QUERY, RouteOptions(tags=frozenset({"nowhere"}))).runners_up == ()


def test_all_round_arms_follow_each_other_where_the_policy_says_so() -> None:
    decision = decide(pool(policy="ALL_ROUND", known=10.0), QUERY)
    assert decision.action is Action.ADAPTERS
    worth = [utility for _, utility in decision.runners_up]
    assert worth == sorted(worth, reverse=True)
    assert decision.best_single.adapter_id not in names(decision)


def test_a_decision_leaves_the_compiled_pool_as_it_was() -> None:
    compiled = compile_pool(pool())
    first = decide(compiled, QUERY)
    assert compiled.all_arms.all()
    assert decide(compiled, QUERY) == first
