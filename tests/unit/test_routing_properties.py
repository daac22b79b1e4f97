"""What holds of every decision, whatever the pool, the query and the options."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lorauter.routing import STRATEGIES, Action, Decision, RouteOptions, TaskExamples, decide, fit_profile
from lorauter.routing.decision import Fate
from lorauter.routing.model import Adapter, Affinity, Pool, Task
from tests.budgets import tries

ADAPTERS = ["a", "b", "c", "t0", "t1"]
VECTORS = hnp.arrays(np.float32, 3, elements=st.floats(-8, 8, width=32, allow_subnormal=False))
SCORES = st.dictionaries(st.sampled_from([*ADAPTERS, "base"]), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
NAMES = st.frozensets(st.sampled_from([*ADAPTERS, "t2", "base"]), max_size=3)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    tasks = tuple(
        Task(
            f"t{number}",
            1,
            "exact_match",
            draw(st.frozensets(st.sampled_from("xy"))),
            3,
            draw(VECTORS),
            {},
            tuple(Affinity(id_, int(id_ != "base"), s, 9, 0.1) for id_, s in draw(SCORES).items()),
        )
        for number in range(draw(st.integers(0, 6)))
    )
    profile = fit_profile([TaskExamples(t.task_id, np.stack([t.centroid, draw(VECTORS)])) for t in tasks])
    adapters = tuple(Adapter(a, 1, f"sha256:{a}", draw(st.booleans())) for a in ADAPTERS)
    return Pool(
        "p", "m", (), draw(st.sampled_from(["ROUTE", "BASE", "REFUSE"])), profile, tasks, adapters, ()
    )


OPTIONS = st.builds(
    RouteOptions,
    strategy=st.sampled_from(sorted(STRATEGIES)),
    max_adapters=st.integers(1, 16),
    tags=st.frozensets(st.sampled_from("xyz"), max_size=2),
    exclude_tasks=NAMES,
    exclude_adapters=NAMES,
    explain=st.just(True),
    why_not=st.just((*ADAPTERS, "base", "nobody")),
)


def numbers(decision: Decision) -> list[float]:
    return [
        decision.typicality,
        decision.expected_utility,
        *(item.weight for item in decision.adapters),
        *(match.probability for match in decision.tasks),
        *(candidate.expected_utility for candidate in decision.explanation.candidates),
    ]


@settings(max_examples=tries(300, 75))
@given(pools(), VECTORS, OPTIONS)
def test_decision_is_well_formed_when_inputs_are_odd(
    pool: Pool, query: np.ndarray, options: RouteOptions
) -> None:
    decision = decide(pool, query, options)
    weights = [item.weight for item in decision.adapters]
    assert np.isfinite(numbers(decision)).all()
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in numbers(decision))
    assert (decision.action is Action.ADAPTERS) == bool(weights)
    assert all(weight > 0 for weight in weights)
    assert not weights or abs(sum(weights) - 1) < 1e-9
    assert weights == sorted(weights, reverse=True)
    assert len(weights) <= options.max_adapters
    assert sum(match.probability for match in decision.tasks) <= 1 + 1e-9


@settings(max_examples=tries(300, 75))
@given(pools(), VECTORS, OPTIONS)
def test_explanation_agrees_with_the_decision(pool: Pool, query: np.ndarray, options: RouteOptions) -> None:
    decision = decide(pool, query, options)
    explanation = decision.explanation
    probabilities = {match.task_id: match.probability for match in decision.tasks}
    assert [(one.arm, one.weight) for one in explanation.origins] == [
        (item.arm, item.weight) for item in decision.adapters
    ]
    for origin in explanation.origins:
        assert abs(sum(part.share for part in origin.tasks) - origin.weight) < 1e-9
        assert all(part.share > 0 for part in origin.tasks)
        assert all(part.probability == probabilities[part.task_id] for part in origin.tasks)
    served = {item.arm.adapter_id for item in decision.adapters}
    if decision.action is Action.BASE:
        served = {"base"}
    fates = {one.adapter_id: one.fate for one in explanation.why_not}
    assert {name for name, fate in fates.items() if fate is Fate.SERVED} == served
    routable = {adapter.adapter_id for adapter in pool.adapters if adapter.routable} | {"base"}
    for name in routable & options.exclude_adapters - served - {"t2"}:
        assert fates[name] is Fate.EXCLUDED
    for name in {*ADAPTERS} - routable:
        assert fates[name] is Fate.NOT_ROUTABLE
    assert fates["nobody"] is Fate.UNKNOWN
    if explanation.next_best is not None:
        assert explanation.next_best.arm.adapter_id not in served
        for one in explanation.why_not:
            if one.fate is Fate.WORTH_LESS:
                assert one.expected_utility <= explanation.next_best.expected_utility + 1e-12


@settings(max_examples=tries(300, 75))
@given(pools(), VECTORS, OPTIONS)
def test_exclusions_are_respected_when_given(pool: Pool, query: np.ndarray, options: RouteOptions) -> None:
    decision = decide(pool, query, options)
    routable = {adapter.adapter_id for adapter in pool.adapters if adapter.routable} | {"base"}
    served = {item.arm.adapter_id for item in decision.adapters}
    assert served <= routable - options.exclude_adapters
    if decision.action is Action.ADAPTERS:
        assert decision.best_single.adapter_id in routable - options.exclude_adapters
    for match in decision.tasks:
        assert match.task_id not in options.exclude_tasks
        assert options.tags <= next(t.tags for t in pool.tasks if t.task_id == match.task_id)


@settings(max_examples=tries(150, 37))
@given(pools(), VECTORS, OPTIONS, st.randoms(use_true_random=False))
def test_decision_is_the_same_when_tasks_and_adapters_come_in_another_order(
    pool: Pool, query: np.ndarray, options: RouteOptions, random: Random
) -> None:
    tasks, adapters = list(pool.tasks), list(pool.adapters)
    random.shuffle(tasks)
    random.shuffle(adapters)
    other = Pool(
        "p", "m", (), pool.untypical_policy, pool.profile, tuple(tasks), tuple(adapters), pool.backends
    )
    assert decide(other, query, options) == decide(pool, query, options)
