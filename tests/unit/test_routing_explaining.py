"""Explanations: where weights come from, who was next, and why not an adapter that somebody asks about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lorauter.errors import InvalidArgument
from lorauter.routing import Decision, RouteOptions, decide
from lorauter.routing.decision import Explanation, Fate, WhyNot
from lorauter.routing.fitting import TYPICALITY_LEVELS, make_profile, typicality_name
from lorauter.routing.model import Adapter, Affinity, Pool, Task

AXES = np.eye(4, dtype=np.float32)
QUERY = np.array([0.8, 0.6, 0.0, 0.0], dtype=np.float32)
SCORES: dict[str, Mapping[str, float]] = {
    "t1": {"a": 0.9, "d": 0.81, "b": 0.3, "base": 0.2},
    "t2": {"b": 0.8, "d": 0.64, "a": 0.4, "base": 0.1},
    "t3": {"c": 0.5, "base": 0.6},
}
ROUTABLE = ("a", "b", "c", "d", "unmeasured")
OTHERS = (
    Adapter("old", 1, "sha256:o1", False, refusal="ADAPTER_RETIRED", successor="a"),
    Adapter("old", 2, "sha256:o2", False),
    Adapter("gone", 1, "sha256:g", False, refusal="ADAPTER_RETIRED", successor="a"),
)


def pool(policy: str = "ROUTE", known: float = -10, **constants: float) -> Pool:
    """A pool whose known queries all score ``known`` or more: by default below what any query reaches."""
    tasks = tuple(
        Task(
            name, 1, "exact_match", frozenset({name}), 20, 3 * AXES[row], {},
            tuple(Affinity(id_, int(id_ != "base"), score, 20, 0.1) for id_, score in scores.items()),
        )
        for row, (name, scores) in enumerate(SCORES.items())
    )  # fmt: skip
    quantiles = {
        typicality_name(level, of): known + level
        for level in TYPICALITY_LEVELS
        for of in ("similarity", "score")
    }
    profile = make_profile({"dense_weight": 5.0, **quantiles, **constants}, {})
    adapters = (*(Adapter(name, 1, f"sha256:{name}", True) for name in ROUTABLE), *OTHERS)
    return Pool("p", "m", (), policy, profile, tasks, adapters, ())


def explained(made: Pool | None = None, **options: Any) -> tuple[Decision, Explanation]:
    decision = decide(made or pool(), QUERY, RouteOptions(explain=True, **options))
    assert decision.explanation is not None
    return decision, decision.explanation


def why(name: str, made: Pool | None = None, **options: Any) -> WhyNot:
    (said,) = explained(made, why_not=(name,), **options)[1].why_not
    assert said.adapter_id == name
    return said


def test_weights_say_which_tasks_gave_them_when_each_task_has_its_best() -> None:
    decision, explanation = explained(strategy="paper")
    assert [one.arm.adapter_id for one in explanation.origins] == ["a", "b", "c"]
    by_task = {match.task_id: match.probability for match in decision.tasks}
    for origin, task in zip(explanation.origins, ("t1", "t2", "t3"), strict=True):
        ((task_id, probability, share),) = [(s.task_id, s.probability, s.share) for s in origin.tasks]
        assert (task_id, probability) == (task, by_task[task])
        assert share == pytest.approx(origin.weight) == pytest.approx(probability)


def test_weight_comes_from_what_tasks_add_to_the_utility_when_one_adapter_has_it_all() -> None:
    decision, explanation = explained(max_adapters=1)
    (origin,) = explanation.origins
    parts = {part.task_id: part for part in origin.tasks}
    shares = {"t1": 0.9, "t2": 0.8} if origin.arm.adapter_id == "d" else {"t1": 1.0, "t2": 0.5}
    for name, share in shares.items():
        added = parts[name].probability * share / decision.expected_utility
        assert parts[name].share == pytest.approx(added)


def test_next_best_is_the_best_that_is_not_served_and_tells_by_how_much() -> None:
    decision, explanation = explained(max_adapters=1, exclude_adapters=frozenset("d"))
    assert decision.best_single.adapter_id == "a"
    found = explanation.next_best
    assert found is not None
    assert found.arm.adapter_id == "b"
    utilities = {one.adapter_id: one.expected_utility for one in explanation.candidates}
    assert found.behind > 0
    assert found.behind == pytest.approx(utilities["a"] - utilities["b"])
    alone = explained(exclude_adapters=frozenset("bcd"), tags=frozenset({"t1"}))[1].next_best
    assert alone is not None
    assert alone.arm.is_base


@pytest.mark.parametrize(
    ("name", "options", "fate", "said"),
    [
        ("nobody", {}, Fate.UNKNOWN, "pool 'p' has no adapter 'nobody'"),
        ("old", {}, Fate.NOT_ROUTABLE, "version 2, the newest, takes no part in new decisions"),
        ("gone", {}, Fate.NOT_ROUTABLE, "version 1, the newest, is retired; its successor is 'a'"),
        ("b", {"exclude_adapters": frozenset("b")}, Fate.EXCLUDED, "the request excludes it"),
        ("base", {"strategy": "paper"}, Fate.EXCLUDED, "'paper' does not take it for an arm"),
        ("unmeasured", {}, Fate.UNMEASURED, "tasks that decide (t1, t2, t3), or is not among the best 64"),
        ("c", {"tags": frozenset({"t1"})}, Fate.UNMEASURED, "(t1)"),
        ("a", {"tags": frozenset({"nowhere"})}, Fate.UNMEASURED, "no task takes part"),
        ("nobody", {"tags": frozenset({"nowhere"})}, Fate.UNKNOWN, "no adapter 'nobody'"),
        ("b", {"strategy": "paper", "max_adapters": 1}, Fate.BEYOND_MAX_ADAPTERS, "raise max_adapters"),
        ("d", {"strategy": "paper"}, Fate.BEST_OF_NO_TASK, "best of none of the tasks that give weight"),
        ("a", {}, Fate.SERVED, "of the weight"),
    ],
)
def test_reason_is_told_when_somebody_asks_why_not(
    name: str, options: dict[str, Any], fate: Fate, said: str
) -> None:
    found = why(name, **options)
    assert found.fate is fate
    assert said in found.message


def test_loss_is_told_by_task_when_an_adapter_is_worth_less() -> None:
    found = why("b", max_adapters=1, exclude_adapters=frozenset("d"))
    decision, explanation = explained(max_adapters=1, exclude_adapters=frozenset("d"))
    utilities = {one.adapter_id: one.expected_utility for one in explanation.candidates}
    assert (found.fate, found.task_id) == (Fate.WORTH_LESS, "t1")
    assert found.expected_utility < decision.expected_utility
    assert found.expected_utility == pytest.approx(utilities["b"])
    assert f"'a' {decision.expected_utility:.3f}" in found.message
    assert "0.333 of the best score there, 'a' 1.000" in found.message


@pytest.mark.parametrize("policy", ["BASE", "REFUSE"])
def test_policy_is_named_when_it_keeps_adapters_from_an_untypical_query(policy: str) -> None:
    found = why("a", pool(policy, known=100))
    assert found.fate is Fate.POLICY
    assert "untypical" in found.message
    assert found.expected_utility > 0
    base = why("base", pool(policy, known=100))
    assert base.fate is (Fate.SERVED if policy == "BASE" else Fate.POLICY)


def test_all_round_choice_is_explained_by_all_measured_tasks() -> None:
    _, explanation = explained(pool("ALL_ROUND", known=100), why_not=("a",))
    (origin,) = explanation.origins
    assert origin.arm.adapter_id == "d"
    shares = {part.task_id: part.share for part in origin.tasks}
    assert shares == pytest.approx({"t1": 0.9 / 1.7, "t2": 0.8 / 1.7})
    assert (explanation.why_not[0].fate, explanation.why_not[0].task_id) == (Fate.WORTH_LESS, "t2")


def test_adapters_are_answered_once_and_in_order_when_asked_about() -> None:
    said = explained(why_not=("c", "a", "c", "nobody"))[1].why_not
    assert [one.adapter_id for one in said] == ["c", "a", "nobody"]


def test_request_is_refused_when_it_asks_about_too_many() -> None:
    with pytest.raises(InvalidArgument) as refused:
        explained(why_not=tuple("abcdefghi"))
    assert (refused.value.reason, refused.value.metadata["field"]) == ("TOO_MANY_WHY_NOT", "why_not")
