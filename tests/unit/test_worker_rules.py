"""The worker's pure rules: versions, cells, scores, spacing, settings."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorauter.routing.model import Affinity
from lorauter.store.serving import served_version
from lorauter_worker.config import Settings
from lorauter_worker.domain.cells import BASE_ARM, Arm, MatchingTask, Measured, Scope, next_batch, plan
from lorauter_worker.domain.scores import KEPT, kept_affinities, mean_and_error
from lorauter_worker.domain.spacing import spaced
from lorauter_worker.domain.versions import Version, matched_versions, routed_version, servable

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def versions(*states: str) -> list[Version]:
    return [Version(number, f"sha256:{number}", state) for number, state in enumerate(states, 1)]


@pytest.mark.parametrize(
    ("aliases", "states", "served"),
    [
        ({}, ["ACTIVE", "ACTIVE"], 2),
        ({}, ["ACTIVE", "QUARANTINED"], 1),
        ({"champion": 1}, ["ACTIVE", "ACTIVE"], 1),
        ({"champion": 1}, ["RETIRED", "ACTIVE"], 2),
        ({"other": 1}, ["ACTIVE", "ACTIVE"], 2),
        ({}, ["RETIRED"], 0),
        ({}, [], 0),
    ],
)
def test_served_version_is_the_champion_or_the_newest_when_active(aliases, states, served):
    assert served_version(aliases, dict(enumerate(states, 1))) == served


@pytest.mark.parametrize(
    ("aliases", "states", "measured", "routed"),
    [
        ({}, ["ACTIVE", "ACTIVE"], {}, 2),
        ({}, ["ACTIVE", "ACTIVE"], {1: 3}, 1),
        ({}, ["ACTIVE", "ACTIVE"], {1: 3, 2: 2}, 1),
        ({}, ["ACTIVE", "ACTIVE"], {1: 3, 2: 3}, 2),
        ({"champion": 1}, ["ACTIVE", "ACTIVE"], {1: 3, 2: 3}, 1),
        ({"champion": 2}, ["ACTIVE", "ACTIVE", "ACTIVE"], {1: 1, 3: 1}, 3),
        ({}, ["QUARANTINED", "ACTIVE"], {1: 9}, 2),
        ({}, ["DRAINING"], {1: 9}, 0),
    ],
)
def test_routed_version_is_the_served_one_when_it_is_as_well_measured(aliases, states, measured, routed):
    assert routed_version(aliases, versions(*states), measured) == routed


def test_matched_versions_are_the_served_and_the_newest_when_they_differ():
    assert matched_versions({"champion": 1}, versions("ACTIVE", "ACTIVE", "ACTIVE", "RETIRED")) == [1, 3]
    assert matched_versions({}, versions("ACTIVE", "ACTIVE")) == [2]
    assert matched_versions({}, versions("REGISTERED", "RETIRED")) == []


def test_pins_end_when_a_version_drains():
    draining = Version(1, "sha256:1", "DRAINING", NOW, "b")
    (known,) = servable("a", {"old": 1, "new": 2}, [draining], 0)
    assert (known.pins_until, known.refusal, known.successor) == (NOW.timestamp(), "", "b")
    assert (known.aliases, known.routable) == (("old",), False)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_mean_and_error_are_bounded_when_scores_are(scores):
    mean, error = mean_and_error(scores)
    assert -1e-9 <= mean <= 1 + 1e-9
    assert 0 <= error <= 0.5 + 1e-9


def test_standard_error_is_the_binomial_one_when_scores_are_0_or_1():
    mean, error = mean_and_error([1.0] * 3 + [0.0] * 7)
    assert mean == pytest.approx(0.3)
    assert error == pytest.approx((0.3 * 0.7 / 9) ** 0.5)


def affinity(adapter: str, score: float, error: float = 0.1) -> Affinity:
    return Affinity(adapter, 0 if adapter == "base" else 1, score, 10, error)


def test_the_best_64_and_the_base_are_kept_when_there_are_more():
    many = [affinity(f"a{number:03}", number / 100) for number in range(100)]
    kept = kept_affinities([affinity("base", 0.0), *many], is_complete=True)
    assert len(kept) == KEPT
    assert [a.adapter_id for a in kept[:2]] == ["a099", "a098"]
    assert kept[-1].adapter_id == "base"
    assert kept_affinities(many, is_complete=False) == ()


def test_equal_scores_go_to_the_surer_when_ranked():
    kept = kept_affinities(
        [affinity("b", 0.5, 0.1), affinity("a", 0.5, 0.1), affinity("c", 0.5, 0.05)], is_complete=True
    )
    assert [a.adapter_id for a in kept] == ["c", "a", "b"]


def task(task_id: str, measured=(), examples: int = 10) -> MatchingTask:
    held = Measured("exact_match", 1, "sha256:p", NOW)
    return MatchingTask(
        task_id, NOW, 1, "exact_match", 1, "sha256:p", examples, "EMBEDDED", {a.key: held for a in measured}
    )


A, B = Arm("a", 1, "sha256:a"), Arm("b", 1, "sha256:b")


def test_plan_measures_new_tasks_first_and_the_base_last_when_cells_are_missing():
    known = task("known", measured=[A, BASE_ARM])
    plans = plan([known, task("new")], [B, A], Scope())
    assert [(p.task.task_id, p.arms) for p in plans] == [("new", (A, B, BASE_ARM)), ("known", (B,))]
    assert [p.evaluations for p in plans] == [30, 10]


def test_plan_is_empty_when_everything_is_measured():
    assert plan([task("known", measured=[A, B, BASE_ARM])], [A, B], Scope()) == []
    assert plan([task("empty", examples=0)], [A], Scope()) == []


@pytest.mark.parametrize(
    "outdated",
    [
        Measured("other", 1, "sha256:p", NOW),
        Measured("exact_match", 2, "sha256:p", NOW),
        Measured("exact_match", 1, "sha256:q", NOW),
    ],
)
def test_a_cell_is_measured_again_when_it_was_measured_otherwise(outdated):
    old = MatchingTask("t", NOW, 1, "exact_match", 1, "sha256:p", 10, "MATCHED", {BASE_ARM.key: outdated})
    (only,) = plan([old], [], Scope())
    assert only.arms == (BASE_ARM,)


def test_cells_are_outdated_when_an_operation_measures_again():
    known = task("known", measured=[A, BASE_ARM])
    assert plan([known], [A], Scope(remeasure_before=NOW)) == []
    (only,) = plan([known], [A], Scope(remeasure_before=NOW + timedelta(seconds=1)))
    assert only.arms == (A, BASE_ARM)


def test_scope_limits_adapters_but_never_the_base_when_given():
    (only,) = plan([task("t"), task("u")], [A, B], Scope(task_ids={"u"}, adapter_ids={"b"}))
    assert (only.task.task_id, only.arms) == ("u", (B, BASE_ARM))


@pytest.mark.parametrize(("most", "arms"), [(1, 1), (10, 1), (19, 1), (20, 2), (1000, 3)])
def test_a_batch_holds_whole_cells_when_it_is_limited(most, arms):
    (only,) = plan([task("t")], [A, B], Scope())
    assert len(next_batch(only, most)) == arms


@given(st.integers(0, 2000), st.integers(1, 300))
def test_spaced_positions_are_distinct_and_within_limits_when_chosen(count, limit):
    chosen = spaced(count, limit)
    assert len(chosen) == len(set(chosen)) == min(count, limit)
    assert chosen == sorted(chosen)
    assert all(0 <= position < count for position in chosen)
    gaps = {later - earlier for earlier, later in itertools.pairwise(chosen)}
    assert len(gaps) <= 2


URLS: dict[str, Any] = {
    "database_url": "postgresql://x@h/d",
    "redis_url": "redis://h:1/0",
    "qdrant_url": "http://h:1",
}


def test_settings_split_queues_when_given_as_text():
    assert Settings(**URLS, queues="matching, index,matching").queues == ("matching", "index")


@pytest.mark.parametrize(
    "wrong",
    [{"queues": "index,other"}, {"queues": ""}, {"heartbeat_seconds": 6.0}, {"lease_seconds": 0.1}],
)
def test_settings_are_refused_when_they_cannot_work(wrong):
    with pytest.raises(ValidationError):
        Settings(**URLS, **wrong)
