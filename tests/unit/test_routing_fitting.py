"""Task representations, and profiles fitted over them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lorauter.encoder import Encoder
from lorauter.errors import InvalidArgument
from lorauter.routing import TaskExamples, fit_profile, represent
from lorauter.routing.fitting import (
    TEMPERATURES,
    TYPICALITY_LEVELS,
    add_quantiles,
    make_profile,
    typicality_name,
)
from lorauter.routing.posterior import UNFITTED
from lorauter.routing.representation import MAX_TERMS
from lorauter.routing.strategies.strategy import typicality_of


def clouds(tasks: int, examples: int, noise: float, dimension: int = 32, seed: int = 0) -> list[TaskExamples]:
    random = np.random.default_rng(seed)
    centers = random.normal(size=(tasks, dimension))
    return [
        TaskExamples(
            f"task-{number:04}",
            (center + noise * random.normal(size=(examples, dimension))).astype(np.float32),
        )
        for number, center in enumerate(centers)
    ]


def leave_one_out_by_hand(tasks: list[TaskExamples]) -> tuple[list[list[float]], list[int]]:
    rows, owners = [], []
    units = [t.vectors / np.linalg.norm(t.vectors, axis=1, keepdims=True) for t in tasks]
    for own, vectors in enumerate(units):
        for place, vector in enumerate(vectors):
            means = [
                np.delete(other, place, axis=0).mean(axis=0) if number == own else other.mean(axis=0)
                for number, other in enumerate(units)
            ]
            rows.append([float(vector @ mean / np.linalg.norm(mean)) for mean in means])
            owners.append(own)
    return rows, owners


def test_centroid_and_terms_are_means_and_sums_when_a_task_is_represented() -> None:
    vectors = np.array([[1, 0], [0, 1]], dtype=np.float32)
    representation = represent(vectors, ["a b", "a"])
    assert representation.centroid.tolist() == [0.5, 0.5]
    assert representation.centroid.dtype == np.float32
    assert sorted(representation.terms.values()) == [1.0, 1.0, 2.0]


def test_terms_are_the_most_frequent_ones_when_there_are_too_many() -> None:
    texts = [f"always w{number}" for number in range(MAX_TERMS)]
    terms = represent(np.ones((1, 2), np.float32), texts).terms
    assert len(terms) == MAX_TERMS
    assert max(terms.values()) == MAX_TERMS


@pytest.mark.parametrize(
    "vectors", [np.zeros((0, 4)), np.zeros(4), np.zeros((2, 0)), np.full((1, 4), np.nan)]
)
def test_vectors_are_refused_when_they_cannot_represent(vectors: np.ndarray) -> None:
    with pytest.raises(InvalidArgument) as refused:
        represent(vectors, [])
    assert refused.value.reason == "INVALID_VECTORS"


def test_profile_equals_the_plain_loop_when_computed_by_hand() -> None:
    tasks = clouds(5, 6, noise=2.0, dimension=8)
    rows, owners = leave_one_out_by_hand(tasks)
    losses = [
        np.mean([np.logaddexp.reduce(np.array(r) / t) - r[o] / t for r, o in zip(rows, owners, strict=True)])
        for t in TEMPERATURES
    ]
    ranks = [sum(value > row[own] for value in row) for row, own in zip(rows, owners, strict=True)]
    profile = fit_profile(tasks)
    assert profile.constants["temperature"] == pytest.approx(TEMPERATURES[int(np.argmin(losses))], abs=1e-6)
    assert profile.figures["paper_tuned_log_loss"] == pytest.approx(min(losses), abs=1e-5)
    assert profile.figures["paper_tuned_loo_top1"] == pytest.approx(
        np.mean([rank == 0 for rank in ranks]), abs=1e-6
    )
    assert profile.figures["paper_tuned_loo_top3"] == pytest.approx(
        np.mean([rank < 3 for rank in ranks]), abs=1e-6
    )
    median = np.median([max(row) for row in rows])
    assert profile.constants[typicality_name(0.5)] == pytest.approx(median, abs=1e-5)


def test_one_task_decides_when_the_nearest_always_is_the_true_one() -> None:
    profile = fit_profile(clouds(10, 10, noise=0.1))
    assert profile.constants["tasks"] == 1
    assert profile.figures["loo_top1"] == 1.0


def test_more_tasks_decide_when_they_look_alike() -> None:
    tasks = clouds(10, 10, noise=5.0)
    assert fit_profile(tasks).constants["tasks"] == 3
    assert fit_profile(tasks, max_tasks=5).constants["tasks"] == 5


def test_profile_is_the_same_when_tasks_come_in_another_order() -> None:
    tasks = clouds(4, 5, noise=1.0)
    assert {fit_profile(order).digest for order in itertools.permutations(tasks)} == {
        fit_profile(tasks).digest
    }


def test_digest_covers_the_constants_alone_when_figures_differ() -> None:
    assert fit_profile([]).digest == fit_profile(clouds(1, 1, noise=1.0)).digest
    assert fit_profile([]).digest != fit_profile(clouds(2, 9, noise=1.0)).digest


@pytest.mark.parametrize(
    "tasks", [[], clouds(1, 1, 1.0), clouds(4, 1, 1.0), [TaskExamples("empty", np.zeros((0, 4), np.float32))]]
)
def test_constants_are_the_unfitted_ones_when_nothing_can_be_scored(tasks: list[TaskExamples]) -> None:
    profile = fit_profile(tasks)
    assert profile.constants == {
        "tasks": 3.0,
        "temperature": 0.05,
        "untypical_below": 0.02,
        "default_tasks": 3.0,
        **UNFITTED,
    }
    assert profile.figures["examples"] == 0.0
    assert typicality_of(profile, -1.0) == 1.0


def test_typicality_is_known_when_there_is_one_task() -> None:
    profile = fit_profile(clouds(1, 20, noise=0.5))
    assert profile.constants["temperature"] == 0.05
    assert typicality_of(profile, -1.0) == pytest.approx(1 / 21)
    assert typicality_of(profile, 1.0) == pytest.approx(20 / 21)


@pytest.mark.parametrize("known", [20, 60, 960])
def test_share_of_queries_flagged_is_alpha_at_most_when_they_are_like_the_known_ones(known: int) -> None:
    random = np.random.default_rng(known)
    flagged = []
    for _ in range(200):
        best = random.standard_normal(known)
        constants: dict[str, float] = {}
        add_quantiles(constants, best, "similarity")
        profile = make_profile(constants, {})
        flagged += [typicality_of(profile, value) <= 0.05 for value in random.standard_normal(100)]
    assert 0.03 < np.mean(flagged) < 0.055


def test_profile_is_finite_when_validation_sets_are_identical() -> None:
    vectors = clouds(1, 8, noise=1.0)[0].vectors
    profile = fit_profile([TaskExamples("one", vectors), TaskExamples("two", vectors)])
    assert all(np.isfinite(list(profile.constants.values())))
    assert profile.figures["log_loss"] >= np.log(2) - 1e-6
    assert profile.constants["tasks"] == 2


def test_tasks_are_refused_when_one_comes_twice_or_dimensions_differ() -> None:
    with pytest.raises(InvalidArgument, match="twice"):
        fit_profile([*clouds(2, 3, 1.0), *clouds(1, 3, 1.0)])
    with pytest.raises(InvalidArgument, match="dimension"):
        fit_profile([*clouds(1, 3, 1.0), TaskExamples("other", np.ones((3, 5), np.float32))])


@settings(max_examples=60)
@given(
    st.lists(
        hnp.arrays(
            np.float32,
            st.tuples(st.integers(0, 4), st.just(3)),
            elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
        ),
        max_size=5,
    )
)
def test_profile_is_finite_and_in_bounds_when_vectors_are_odd(sets: list[np.ndarray]) -> None:
    profile = fit_profile([TaskExamples(f"t{number}", vectors) for number, vectors in enumerate(sets)])
    assert np.isfinite([*profile.constants.values(), *profile.figures.values()]).all()
    assert profile.constants["tasks"] in (1.0, 2.0, 3.0)
    assert 0.005 <= profile.constants["temperature"] <= 0.5
    kept = [profile.constants.get(typicality_name(level)) for level in TYPICALITY_LEVELS]
    assert all(value is None for value in kept) or kept == sorted(kept)


def test_evenly_spaced_examples_stand_for_all_when_there_are_many() -> None:
    profile = fit_profile(clouds(1000, 20, noise=3.0, dimension=384))
    assert profile.figures["examples"] == 1048
    assert profile.figures["loo_top1"] > 0.9


def test_real_vectors_are_told_apart_when_tasks_differ(encoder: Encoder) -> None:
    texts = {
        "sentiment": [
            "a wonderful film",
            "the plot was dull",
            "I loved the acting",
            "boring and far too long",
        ],
        "capital": [
            "the capital of France",
            "which city is the capital of Peru",
            "name Japan's capital",
            "capital of Kenya",
        ],
        "sum": ["what is 3 plus 4", "add 12 and 30", "compute 7 + 9", "sum of 5 and 6"],
    }
    profile = fit_profile([TaskExamples(name, encoder.encode(values)) for name, values in texts.items()])
    assert profile.figures["loo_top1"] >= 0.9
    assert profile.constants["temperature"] < 0.2
