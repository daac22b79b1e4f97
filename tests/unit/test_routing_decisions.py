"""Decisions: the paper's rule by hand, the default's, policies, truncation, evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from lorauter.errors import InvalidArgument
from lorauter.routing import STRATEGIES, Action, Decision, RouteOptions, compile_pool, decide
from lorauter.routing.fitting import TYPICALITY_LEVELS, make_profile, typicality_name
from lorauter.routing.model import Adapter, Affinity, Pool, Task

QUERY = np.array([0.8, 0.6, 0.0, 0.0], dtype=np.float32)
AXES = np.eye(4, dtype=np.float32)

# exp(4), exp(3), exp(0): the similarities 0.8, 0.6, 0 over τ = 0.2.
SHARES = np.array([54.598150, 20.085537, 1.0]) / 75.683687


def task(name: str, axis: int, affinities: Mapping[str, float], tags: Sequence[str] = ()) -> Task:
    measured = [Affinity(id_, int(id_ != "base"), score, 20, 0.1) for id_, score in affinities.items()]
    return Task(name, 1, "exact_match", frozenset(tags), 20, 3 * AXES[axis], {}, tuple(measured))


def pool(
    tasks: Sequence[Task],
    /,
    adapters: Sequence[str | Adapter] = ("a", "b", "c"),
    policy: str = "ROUTE",
    **constants: float,
) -> Pool:
    versions = tuple(Adapter(a, 1, f"sha256:{a}", True) if isinstance(a, str) else a for a in adapters)
    return Pool("p", "m", (), policy, make_profile(constants, {}), tuple(tasks), versions, ())


THREE = pool(
    [
        task("t1", 0, {"a": 0.9, "b": 0.3, "base": 0.2}),
        task("t2", 1, {"b": 0.8, "a": 0.4, "base": 0.1}),
        task("t3", 2, {"c": 0.5, "base": 0.6}),
    ],
    tasks=3.0,
    temperature=0.2,
)


def weights(decision: Decision) -> dict[str, float]:
    return {item.arm.adapter_id: item.weight for item in decision.adapters}


def paper(pool: Pool, **options: Any) -> dict[str, float]:
    return weights(decide(pool, QUERY, RouteOptions(strategy="paper", **options)))


def test_weights_are_the_published_ones_when_each_task_has_its_own_adapter() -> None:
    decision = decide(THREE, QUERY, RouteOptions(strategy="paper"))
    assert weights(decision) == pytest.approx(dict(zip("abc", SHARES, strict=True)), abs=1e-6)
    assert [item.arm.adapter_id for item in decision.adapters] == ["a", "b", "c"]
    assert [match.probability for match in decision.tasks] == pytest.approx(SHARES, abs=1e-6)
    assert [match.similarity for match in decision.tasks] == pytest.approx([0.8, 0.6, 0.0], abs=1e-6)
    assert decision.adapters[0].arm.digest == "sha256:a"
    assert decision.action is Action.ADAPTERS


def test_weights_are_added_when_tasks_share_an_adapter() -> None:
    shared = pool([task("t1", 0, {"a": 0.9}), task("t2", 1, {"b": 0.8}), task("t3", 2, {"a": 0.5, "b": 0.4})])
    assert paper(shared) == pytest.approx({"a": SHARES[0] + SHARES[2], "b": SHARES[1]}, abs=1e-6)


def test_only_three_tasks_decide_when_there_are_four() -> None:
    far = task("t0", 3, {"d": 1.0})
    tilted = QUERY - 0.01 * AXES[3]
    four = pool([*THREE.tasks, far], ("a", "b", "c", "d"))
    chosen = weights(decide(four, tilted, RouteOptions(strategy="paper", max_adapters=16)))
    assert set(chosen) == {"a", "b", "c"}


def test_base_is_no_arm_of_the_paper_when_it_scores_best() -> None:
    assert "base" not in paper(THREE)
    assert paper(THREE)["c"] == pytest.approx(SHARES[2], abs=1e-6)


@pytest.mark.parametrize(("name", "winner"), [("t", "c"), ("b", "b")])
def test_ties_go_to_the_adapter_of_the_tasks_name_when_there_is_one(name: str, winner: str) -> None:
    assert paper(pool([task(name, 0, {"c": 0.5, "b": 0.5, "a": 0.5})])) == {winner: 1.0}


def test_best_single_of_the_paper_is_the_nearest_tasks_when_others_share() -> None:
    shared = pool([task("t1", 0, {"a": 0.9}), task("t2", 0, {"b": 0.8}), task("t3", 0, {"b": 0.5})])
    decision = decide(shared, AXES[0], RouteOptions(strategy="paper"))
    assert decision.best_single.adapter_id == "a"
    assert weights(decision) == pytest.approx({"b": 2 / 3, "a": 1 / 3})


def test_task_contributes_its_neighbours_best_when_it_was_not_measured() -> None:
    new = Task("new", 1, "exact_match", frozenset(), 5, np.array([1, 0.1, 0, 0], np.float32), {}, ())
    decision = decide(pool([*THREE.tasks, new]), AXES[0], RouteOptions(strategy="paper"))
    assert {match.task_id: match.measured for match in decision.tasks}["new"] is False
    assert weights(decision)["a"] > 0.9


def test_truncated_weights_sum_to_one_when_fewer_adapters_are_asked_for() -> None:
    two = SHARES[:2] / SHARES[:2].sum()
    assert paper(THREE, max_adapters=2) == pytest.approx({"a": two[0], "b": two[1]}, abs=1e-6)
    assert paper(THREE, max_adapters=1) == {"a": 1.0}


def test_excluded_ones_take_no_part_when_asked() -> None:
    assert set(paper(THREE, exclude_adapters=frozenset({"a"}))) == {"b", "c"}
    assert set(paper(THREE, exclude_tasks=frozenset({"t1", "unknown"}))) == {"b", "c"}


def test_only_tasks_with_all_tags_take_part_when_tags_are_given() -> None:
    tagged = pool([task("t1", 0, {"a": 1.0}, ["x"]), task("t2", 1, {"b": 1.0}, ["x", "y"])])
    assert set(paper(tagged, tags=frozenset({"x"}))) == {"a", "b"}
    assert set(paper(tagged, tags=frozenset({"x", "y"}))) == {"b"}
    assert decide(tagged, QUERY, RouteOptions(tags=frozenset({"z"}))).action is Action.BASE


def test_base_takes_its_tasks_weight_when_it_is_best_there() -> None:
    decision = decide(THREE, QUERY, RouteOptions(strategy="paper_tuned"))
    assert weights(decision) == pytest.approx({"a": SHARES[0], "b": SHARES[1], "base": SHARES[2]}, abs=1e-6)
    expected = SHARES @ np.array([1.0, 0.5, 0.0])
    assert decision.best_single.adapter_id == "a"
    assert decision.expected_utility == pytest.approx(expected, abs=1e-6)


def test_best_single_hedges_when_no_specialist_is_likely_enough() -> None:
    hedging = pool(
        [task("t1", 0, {"a": 1.0, "c": 0.8}), task("t2", 1, {"b": 1.0, "c": 0.8})], tasks=2.0, temperature=1.0
    )
    decision = decide(hedging, QUERY, RouteOptions(strategy="paper_tuned"))
    assert decision.best_single.adapter_id == "c"
    assert decision.expected_utility == pytest.approx(0.8)
    one = RouteOptions(strategy="paper_tuned", max_adapters=1)
    assert weights(decide(hedging, QUERY, one)) == {"c": 1.0}


def test_fitted_constants_are_used_when_the_profile_has_them() -> None:
    sharp = pool(THREE.tasks, tasks=1.0, temperature=0.05)
    decision = decide(sharp, QUERY, RouteOptions(strategy="paper_tuned", explain=True))
    assert weights(decision) == {"a": 1.0}
    assert decision.tasks[0].probability == pytest.approx(1 / (1 + np.exp(-4) + np.exp(-16)), abs=1e-5)
    assert decision.explanation.constants == {"tasks": 1.0, "temperature": 0.05}


def test_action_is_base_when_the_base_is_expected_best() -> None:
    decision = decide(THREE, AXES[2])
    assert (decision.action, decision.adapters, decision.best_single.adapter_id) == (Action.BASE, (), "base")
    assert decision.best_single.version == 0
    assert decision.expected_utility > 0.9


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize(
    "tasks", [[], [task("t", 0, {})], [task("t", 0, {"gone": 1.0})]], ids=["none", "unmeasured", "unservable"]
)
def test_action_is_base_with_a_reason_when_nothing_was_measured(strategy: str, tasks: list[Task]) -> None:
    decision = decide(pool(tasks), QUERY, RouteOptions(strategy=strategy, explain=True))
    assert decision.action is Action.BASE
    assert decision.adapters == ()
    assert "no task" in decision.reason or "no adapter" in decision.reason


@pytest.mark.parametrize(
    "adapter",
    [
        Adapter("a", 1, "sha256:a", routable=False),
        Adapter("a", 1, "sha256:a", routable=True, refusal="ADAPTER_DISABLED"),
        Adapter("a", 2, "sha256:a2", routable=True),
    ],
    ids=["draining", "disabled", "other version"],
)
def test_adapter_is_not_chosen_when_its_measured_version_is_not_routable(adapter: Adapter) -> None:
    assert paper(pool([task("t", 0, {"a": 0.9, "b": 0.1})], (adapter, "b"))) == {"b": 1.0}


def quantiles(low: float, high: float) -> dict[str, Any]:
    return {typicality_name(level): low + level * (high - low) for level in TYPICALITY_LEVELS}


@pytest.mark.parametrize(
    ("policy", "action", "best"),
    [("ROUTE", "ADAPTERS", "a"), ("BASE", "BASE", "base"), ("REFUSE", "REFUSE", "a")],
)
def test_policy_decides_when_the_query_is_untypical(policy: str, action: str, best: str) -> None:
    strict = pool(THREE.tasks, policy=policy, **quantiles(0.9, 1.0))
    tuned = RouteOptions(strategy="paper_tuned")
    decision = decide(strict, QUERY, tuned)
    assert (decision.action, decision.best_single.adapter_id, decision.typicality) == (action, best, 0.0)
    assert "untypical" in decision.reason
    assert bool(decision.adapters) == (action == "ADAPTERS")
    usual = decide(pool(THREE.tasks, policy=policy, **quantiles(0.6, 1.0)), QUERY, tuned)
    assert usual.action is Action.ADAPTERS
    assert usual.typicality == pytest.approx(0.5, abs=1e-3)


def test_explanation_shows_evidence_when_asked_for() -> None:
    explanation = decide(THREE, QUERY, RouteOptions(explain=True, max_adapters=1)).explanation
    assert [(name, found.adapter_id) for name, found in explanation.affinities[:3]] == [
        ("t1", "a"),
        ("t1", "b"),
        ("t1", "base"),
    ]
    fates = {candidate.adapter_id: candidate.reason for candidate in explanation.candidates}
    assert set(fates) == {"a", "b", "c", "base"}
    assert fates["a"].endswith("the best single")
    assert decide(THREE, QUERY).explanation is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (RouteOptions(strategy="magic"), "UNKNOWN_STRATEGY"),
        (RouteOptions(max_adapters=0), "MAX_ADAPTERS_OUT_OF_RANGE"),
        (RouteOptions(max_adapters=17), "MAX_ADAPTERS_OUT_OF_RANGE"),
    ],
)
def test_options_are_refused_when_they_cannot_be_met(options: RouteOptions, reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        decide(THREE, QUERY, options)
    assert refused.value.reason == reason


@pytest.mark.parametrize("query", [np.ones(3), np.ones((1, 4)), np.full(4, np.nan), np.full(4, np.inf)])
def test_vector_is_refused_when_it_is_not_one_of_the_pools_encoder(query: np.ndarray) -> None:
    with pytest.raises(InvalidArgument) as refused:
        decide(THREE, query)
    assert refused.value.reason == "INVALID_VECTORS"


def test_compiled_arrays_are_read_only_when_shared() -> None:
    compiled = compile_pool(THREE)
    for array in (compiled.directions, compiled.scores, compiled.shares, compiled.columns):
        assert not array.flags.writeable
