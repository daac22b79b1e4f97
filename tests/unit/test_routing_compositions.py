"""Measured compositions in decisions: what they are expected to be worth, and when they are served."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lorauter.routing import Action, Decision, RouteOptions, compile_pool, decide
from lorauter.routing.bm25 import NO_TERMS
from lorauter.routing.candidates import restricted
from lorauter.routing.decision import Explanation, Fate
from lorauter.routing.fitting import TYPICALITY_LEVELS, make_profile, typicality_name
from lorauter.routing.model import Adapter, Affinity, Composition, Pool, Task

AXES = np.eye(4, dtype=np.float32)
QUERY = np.array([0.9, 0.4, 0.1, 0.0], dtype=np.float32)
CONSTANTS = {"shrinkage": 1.0, "dense_weight": 4.0, "lexical_weight": 4.0, "default_tasks": 2.0}
WON = Composition("mix-won", (("a", 1, 0.6), ("b", 1, 0.4)), 0.9, 16, 0.07, 0.3, 0.1)
SCORES = {"t1": {"a": 0.6, "b": 0.5, "base": 0.2}, "t2": {"b": 0.8, "a": 0.4}, "t3": {"c": 0.7, "base": 0.6}}


def pool(*compositions: Composition, policy: str = "ROUTE", typical: bool = True, on: str = "t1") -> Pool:
    tasks = tuple(
        Task(
            name, 1, "exact_match", frozenset(), 20, AXES[row], {},
            tuple(Affinity(id_, int(id_ != "base"), score, 20, 0.1) for id_, score in scores.items()),
            compositions=compositions if name == on else (),
        )
        for row, (name, scores) in enumerate(SCORES.items())
    )  # fmt: skip
    usual = -10.0 if typical else 10.0
    levels = {typicality_name(level, "score"): usual + level for level in TYPICALITY_LEVELS}
    adapters = tuple(Adapter(name, 1, f"sha256:{name}", True) for name in "abc")
    return Pool("p", "m", (), policy, make_profile(CONSTANTS | levels, {}), tasks, adapters, ())


def served(decision: Decision) -> dict[str, float]:
    return {item.arm.adapter_id: item.weight for item in decision.adapters}


def explained(made: Pool, **options: object) -> tuple[Decision, Explanation]:
    decision = decide(made, QUERY, RouteOptions(explain=True, **options))  # type: ignore[arg-type]
    assert decision.explanation is not None
    return decision, decision.explanation


def test_composition_that_won_is_served_and_measured() -> None:
    decision = decide(pool(WON), QUERY)
    assert served(decision) == pytest.approx({"a": 0.6, "b": 0.4})
    assert decision.measured
    assert decision.action is Action.ADAPTERS
    assert "gained 0.300 ± 0.100" in decision.reason
    assert "'t1'" in decision.reason
    assert decision.best_single == decide(pool(), QUERY).best_single


def test_set_of_the_best_of_each_task_is_not_measured() -> None:
    decision = decide(pool(), QUERY)
    assert set(served(decision)) == {"a", "b"}
    assert not decision.measured
    alone = decide(pool(WON), QUERY, RouteOptions(max_adapters=1))
    assert len(alone.adapters) == 1
    assert alone.measured
    assert not decide(pool(WON), QUERY, RouteOptions(strategy="paper")).measured


def test_utility_is_what_was_measured_on_its_task_and_linear_on_the_others() -> None:
    decision, explanation = explained(pool(WON))
    (found,) = explanation.compositions
    p = {match.task_id: match.probability for match in decision.tasks}
    on_others = p["t2"] * (0.6 * 0.4 / 0.8 + 0.4 * 1.0)
    assert found.expected_utility == pytest.approx(p["t1"] * (1 + 0.3 / 0.6) + on_others)
    assert (found.task_id, found.name, found.served, found.reason) == ("t1", "mix-won", True, "served")


@pytest.mark.parametrize(
    ("composition", "options", "said"),
    [
        (replace(WON, gain=0.1), {}, "not more than one standard error"),
        (replace(WON, gain=-0.3), {}, "gained -0.300"),
        (WON, {"max_adapters": 1}, "more than max_adapters"),
        (WON, {"exclude_adapters": frozenset({"b"})}, "excludes"),
        (
            replace(WON, gain=0.002, gain_error=0.001, members=(("a", 1, 0.6), ("c", 1, 0.4))),
            {"exclude_tasks": frozenset({"t3"})},
            "not more than the best single's",
        ),
    ],
)
def test_composition_is_not_served_and_says_why(composition: Composition, options: dict, said: str) -> None:
    decision, explanation = explained(pool(composition), **options)
    (found,) = explanation.compositions
    assert not found.served
    assert said in found.reason
    assert served(decision) == served(decide(pool(), QUERY, RouteOptions(**options)))


def test_composition_is_not_served_when_the_query_is_of_another_task() -> None:
    decision = decide(pool(WON), AXES[2])
    assert served(decision).get("c", 0) > 0
    assert not decision.measured
    assert "composition" not in decision.reason


def test_best_of_several_compositions_is_served() -> None:
    more = replace(WON, name="mix-more", gain=0.35, members=(("a", 1, 0.5), ("b", 1, 0.5)))
    decision, explanation = explained(pool(more, WON))
    assert served(decision) == pytest.approx({"a": 0.5, "b": 0.5})
    assert {each.name: each.served for each in explanation.compositions} == {
        "mix-more": True,
        "mix-won": False,
    }
    (other,) = [each.reason for each in explanation.compositions if not each.served]
    assert "another composition" in other


def test_composition_of_an_adapter_that_is_gone_is_as_if_never_measured() -> None:
    gone = replace(WON, members=(("a", 1, 0.6), ("b", 2, 0.4)))
    decision, explanation = explained(pool(gone))
    assert explanation.compositions == ()
    assert not decision.measured


def test_weights_come_from_the_task_that_the_composition_was_measured_on() -> None:
    decision, explanation = explained(pool(WON), why_not=("a", "c", "base"))
    for origin, item in zip(explanation.origins, decision.adapters, strict=True):
        assert (origin.arm, origin.weight) == (item.arm, item.weight)
        assert [(part.task_id, part.share) for part in origin.tasks] == [("t1", origin.weight)]
    fates = {said.adapter_id: said.fate for said in explanation.why_not}
    assert fates == {"a": Fate.SERVED, "c": Fate.WORTH_LESS, "base": Fate.WORTH_LESS}
    assert "the composition that is served" in explanation.why_not[-1].message


@pytest.mark.parametrize(("policy", "action"), [("BASE", Action.BASE), ("REFUSE", Action.REFUSE)])
def test_policy_keeps_compositions_from_untypical_queries(policy: str, action: Action) -> None:
    decision, explanation = explained(pool(WON, policy=policy, typical=False))
    assert (decision.action, decision.adapters) == (action, ())
    assert [each.served for each in explanation.compositions] == [False]
    assert "untypical" in explanation.compositions[0].reason


def test_all_round_policy_serves_one_arm() -> None:
    decision = decide(pool(WON, policy="ALL_ROUND", typical=False), QUERY)
    assert len(decision.adapters) <= 1
    assert decision.measured


def test_composition_is_served_where_the_base_is_the_best_single() -> None:
    won = Composition("mix-base", (("a", 1, 0.5), ("c", 1, 0.5)), 0.9, 16, 0.07, 0.4, 0.1)
    tasks = pool(won, on="t3").tasks
    third = replace(tasks[2], affinities=(Affinity("base", 0, 0.7, 20, 0.1), Affinity("c", 1, 0.6, 20, 0.1)))
    decision = decide(replace(pool(), tasks=(*tasks[:2], third)), AXES[2])
    assert decision.best_single.is_base
    assert decision.action is Action.ADAPTERS
    assert set(served(decision)) == {"a", "c"}


def test_candidates_of_a_pool_serve_the_same_composition() -> None:
    whole = compile_pool(pool(WON))
    for rows in (np.array([0, 1], dtype=np.intp), np.array([0, 2], dtype=np.intp)):
        few = decide(restricted(whole, rows, NO_TERMS), QUERY)
        assert served(few) == served(decide(whole, QUERY))
        assert few.measured
