"""Policy ALL_ROUND: what untypical queries get is the arm of the largest mean share over measured tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from lorauter.routing import STRATEGIES, Action, Decision, RouteOptions, decide
from lorauter.routing.fitting import TYPICALITY_LEVELS, make_profile, typicality_name
from lorauter.routing.model import Adapter, Affinity, Pool, Task

AXES = np.eye(4, dtype=np.float32)
SCORES: Sequence[Mapping[str, float]] = (
    {"a": 0.9, "c": 0.81, "base": 0.1},
    {"b": 0.5, "c": 0.4, "base": 0.1},
    {"d": 0.6, "c": 0.42, "base": 0.3},
    {},
)
MEANS = {"c": (0.9 + 0.8 + 0.7) / 3, "base": (1 / 9 + 0.2 + 0.5) / 3, "a": 1 / 3, "b": 1 / 3, "d": 1 / 3}


def pool(scores: Sequence[Mapping[str, float]] = SCORES, policy: str = "ALL_ROUND", best: float = 10) -> Pool:
    """A pool whose known queries all score ``best`` or more: by default above what any query reaches."""
    tasks = [
        Task(
            f"t{row}", 1, "exact_match", frozenset({"odd"} if row % 2 else ()), 20, AXES[row], {},
            tuple(Affinity(name, int(name != "base"), score, 20, 0.1) for name, score in each.items()),
        )
        for row, each in enumerate(scores)
    ]  # fmt: skip
    quantiles = {
        typicality_name(level, of): best + level
        for level in TYPICALITY_LEVELS
        for of in ("similarity", "score")
    }
    adapters = tuple(Adapter(name, 1, f"sha256:{name}", True) for name in "abcd")
    return Pool("p", "m", (), policy, make_profile(quantiles, {}), tuple(tasks), adapters, ())


def asked(pool: Pool, **options: Any) -> Decision:
    return decide(pool, AXES[0], RouteOptions(**options))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_round_adapter_is_served_alone_when_the_query_is_untypical(strategy: str) -> None:
    decision = asked(pool(), strategy=strategy, explain=True)
    assert [(one.arm.adapter_id, one.weight) for one in decision.adapters] == [("c", 1.0)]
    assert (decision.action, decision.best_single.adapter_id) == (Action.ADAPTERS, "c")
    assert decision.expected_utility == pytest.approx(MEANS["c"])
    assert "untypical (0.000, below 0.02)" in decision.reason
    assert "best over all tasks" in decision.reason
    found = {one.adapter_id: one.expected_utility for one in decision.explanation.candidates}
    assert found == pytest.approx(MEANS)
    assert decision.explanation.candidates[0].reason == "1.000 of the weight; the best single"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_query_is_routed_as_ever_when_it_is_typical(strategy: str) -> None:
    decision = asked(pool(best=-10), strategy=strategy)
    assert (decision.best_single.adapter_id, decision.typicality) == ("a", 1.0)
    assert decision.reason == asked(pool(best=-10, policy="ROUTE"), strategy=strategy).reason


def test_request_still_says_who_takes_part_when_the_query_is_untypical() -> None:
    assert asked(pool(), exclude_adapters=frozenset("c")).best_single.adapter_id == "a"
    assert asked(pool(), tags=frozenset({"odd"})).best_single.adapter_id == "b"
    without = asked(pool(), exclude_tasks=frozenset({"t0", "t1"}))
    assert (without.best_single.adapter_id, without.expected_utility) == ("d", 1.0)


def test_base_is_served_when_it_does_best_over_all_tasks() -> None:
    even = [{"a": 0.5, "base": 0.4}, {"b": 0.5, "base": 0.4}, {"c": 0.5, "base": 0.5}]
    decision = asked(pool(even))
    assert (decision.action, decision.best_single.adapter_id, decision.adapters) == (Action.BASE, "base", ())
    assert "best over all tasks" in decision.reason
    tied = asked(pool([{"a": 0.5}, {"base": 0.5}]))
    assert tied.action is Action.BASE


def test_base_is_served_with_its_reason_when_nothing_was_measured() -> None:
    decision = asked(pool([{}, {}]))
    assert (decision.action, decision.adapters) == (Action.BASE, ())
    assert "no adapter that may be served was measured" in decision.reason
