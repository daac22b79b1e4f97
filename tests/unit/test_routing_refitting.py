"""Refitting a profile: which constants stay, and that neither order nor memory changes anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorauter.routing.bm25 import Terms, terms_of
from lorauter.routing.fitting import (
    TYPICALITY_LEVELS,
    Memory,
    TaskExamples,
    fit_profile,
    make_profile,
    refit,
)
from lorauter.routing.model import Profile
from lorauter.routing.posterior import UNFITTED, stays

KEPT = (*UNFITTED, "temperature")
BAD = {"shrinkage": 1.0, "dense_weight": 500.0, "lexical_weight": 0.0, "temperature": 0.005}


def worded(tasks: int, examples: int = 6, noise: float = 2.0, seed: int = 0) -> list[TaskExamples]:
    """Clouds of vectors whose texts share some words within a task and some between tasks."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(tasks):
        vectors = random.normal(size=8) + noise * random.normal(size=(examples, 8))
        words = random.integers(0, 12, (examples, 5)) + 6 * number
        terms = [counted(np.append(row, random.integers(1000, 9999))) for row in words]
        total = counted(np.concatenate([np.repeat(each.ids, each.counts.astype(int)) for each in terms]))
        found.append(TaskExamples(f"task-{number:02}", vectors.astype(np.float32), terms, total))
    return found


def counted(ids: np.ndarray) -> Terms:
    return terms_of(dict(zip(*(each.tolist() for each in np.unique(ids, return_counts=True)), strict=True)))


def kept(profile: Profile) -> dict[str, float]:
    return {name: profile.constants[name] for name in KEPT}


def with_constants(profile: Profile, **constants: float) -> Profile:
    return make_profile({**profile.constants, **constants}, {})


def assert_same(one: Profile, other: Profile) -> None:
    assert one == other
    assert one.scatter is not None
    assert other.scatter is not None
    assert one.scatter.tobytes() == other.scatter.tobytes()


def test_new_constants_are_taken_when_the_old_are_clearly_worse() -> None:
    tasks = worded(8)
    fitted = fit_profile(tasks)
    found = refit(tasks, with_constants(fitted, **BAD))
    assert_same(found.profile, fitted)
    assert found.report["kept"] == 0
    assert (
        found.report["log_loss_before"] > found.report["log_loss_fitted"] == found.profile.figures["log_loss"]
    )


def test_old_constants_stay_when_the_new_are_better_by_chance_only() -> None:
    tasks = worded(8)
    before = fit_profile(worded(7))
    found = refit(tasks, before)
    assert kept(found.profile) == kept(before)
    assert kept(found.profile) != kept(fit_profile(tasks))
    assert found.report["kept"] == 1
    assert found.profile.figures["log_loss"] == found.report["log_loss_before"]
    assert found.profile.digest not in (before.digest, fit_profile(tasks).digest)


def test_measurements_follow_the_examples_when_constants_stay() -> None:
    before, tasks = fit_profile(worded(7)), worded(8)
    found = refit(tasks, before).profile
    quantiles = {name for name in found.constants if name.startswith("best_") and "_q" in name}
    assert len(quantiles) == 2 * len(TYPICALITY_LEVELS)
    similar = {name for name in quantiles if "similarity" in name}
    assert {name: found.constants[name] for name in similar} == {
        name: fit_profile(tasks).constants[name] for name in similar
    }
    assert any(found.constants[name] != before.constants[name] for name in quantiles - similar)


def test_constants_stay_unless_the_gain_exceeds_its_standard_error() -> None:
    old = np.array([1.0, 2.0, 3.0, 4.0])
    assert stays(old, old)
    assert stays(old, old + 0.1)
    assert not stays(old, old - 0.1)
    gains = np.array([4.0, -2.0, -2.0, 4.0])  # 1 on average, with an error of 1.73
    assert stays(old, old - gains)
    assert not stays(old, old - gains - 1.0)
    assert stays(np.array([1.0]), np.array([0.0]))


@pytest.mark.parametrize("before", [{}, {"temperature": 0.5}, {"shrinkage": 0.3, "dense_weight": 3.0}])
def test_nothing_is_kept_when_constants_lack(before: dict[str, float]) -> None:
    tasks = worded(5)
    found = refit(tasks, make_profile(before, {}))
    assert found.report == {}
    assert {name: found.profile.constants[name] for name in UNFITTED} == {
        name: fit_profile(tasks).constants[name] for name in UNFITTED
    }


@pytest.mark.parametrize("tasks", [[], worded(1), worded(3, examples=1)])
def test_constants_are_the_unfitted_ones_when_nothing_can_be_told_apart(tasks: list[TaskExamples]) -> None:
    found = refit(tasks, fit_profile(worded(6)))
    assert kept(found.profile) == {**UNFITTED, "temperature": 0.05}
    assert found.report == {}


constants = st.fixed_dictionaries(
    {
        "shrinkage": st.sampled_from((0.1, 0.25, 0.5, 1.0)),
        "dense_weight": st.floats(0, 60),
        "lexical_weight": st.floats(0, 60),
        "temperature": st.floats(0.005, 0.5),
    }
)


@settings(max_examples=60)
@given(st.integers(0, 50), st.integers(2, 7), st.floats(0.2, 4.0), constants)
def test_choice_is_no_worse_and_chosen_again_when_refitted(
    seed: int, count: int, noise: float, old: dict[str, float]
) -> None:
    tasks = worded(count, noise=noise, seed=seed)
    found = refit(tasks, with_constants(fit_profile(tasks), **old))
    assert found.profile.figures["log_loss"] <= found.report["log_loss_before"]
    again = refit(tasks[::-1], found.profile)
    assert_same(again.profile, found.profile)
    assert again.report["kept"] == 1


@settings(max_examples=40)
@given(st.lists(st.sets(st.integers(0, 8)), min_size=1, max_size=6), st.data())
def test_profile_is_the_same_when_memory_holds_other_tasks_from_before(
    pools: list[set[int]], data: st.DataObject
) -> None:
    every, memory = worded(9), Memory()
    before = None
    for chosen in pools:
        tasks = [every[number] for number in data.draw(st.permutations(sorted(chosen)))]
        remembered = refit(tasks, before, memory).profile
        afresh = refit(tasks, before).profile
        assert remembered == afresh
        assert np.array_equal(remembered.scatter, afresh.scatter)
        before = remembered


def test_replaced_task_is_seen_when_memory_holds_its_older_version() -> None:
    tasks, memory = worded(6), Memory()
    refit(tasks, None, memory)
    newer = [replace(tasks[0], vectors=worded(6, seed=1)[0].vectors), *tasks[1:]]
    assert_same(refit(newer, None, memory).profile, fit_profile(newer))
    shorter = [replace(task, vectors=task.vectors[:, :4]) for task in newer]
    assert_same(refit(shorter, None, memory).profile, fit_profile(shorter))
