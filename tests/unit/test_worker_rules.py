"""The worker's pure rules: versions, requests, pace, what a snapshot keeps, spacing, settings."""

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorauter.routing.model import Affinity
from lorauter.store.serving import served_version
from lorauter_worker.config import Settings
from lorauter_worker.domain.arms import BASE_ARM, Arm
from lorauter_worker.domain.kept import KEPT, kept_affinities
from lorauter_worker.domain.matching_request import MatchingRequest
from lorauter_worker.domain.pacing import Pace
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
    assert matched_versions({"champion": 1}, [1, 2, 3]) == [1, 3]
    assert matched_versions({"champion": 4}, [1, 2]) == [2]
    assert matched_versions({}, []) == []


def test_pins_end_when_a_version_drains():
    draining = Version(1, "sha256:1", "DRAINING", NOW, "b")
    (known,) = servable("a", {"old": 1, "new": 2}, [draining], 0)
    assert (known.pins_until, known.refusal, known.successor) == (NOW.timestamp(), "", "b")
    assert (known.aliases, known.routable) == (("old",), False)


def affinity(adapter: str, score: float, error: float = 0.1) -> Affinity:
    return Affinity(adapter, 0 if adapter == "base" else 1, score, 10, error)


def test_the_best_64_and_the_base_are_kept_when_there_are_more():
    many = [affinity(f"a{number:03}", number / 100) for number in range(100)]
    kept = kept_affinities([affinity("base", 0.0), *many], is_complete=True)
    assert len(kept) == KEPT
    assert [a.adapter_id for a in kept[:2]] == ["a099", "a098"]
    assert kept[-1].adapter_id == "base"
    assert kept_affinities(many, is_complete=False) == ()


def test_equal_scores_stay_in_their_order_when_ranked():
    kept = kept_affinities([affinity("b", 0.5), affinity("a", 0.5), affinity("c", 0.6)], is_complete=True)
    assert [a.adapter_id for a in kept] == ["c", "b", "a"]


def test_request_is_read_as_written_when_stored():
    request = MatchingRequest(("t",), ("a",), True, "paper", 7, 1.5, -3)
    assert MatchingRequest.from_json(request.to_json()) == request
    assert MatchingRequest.from_json({}) == MatchingRequest()


def test_request_asks_for_the_base_always_when_it_names_tasks_and_adapters():
    request = MatchingRequest(task_ids=("t",), adapter_ids=("a",))
    assert request.asks_for_task("t")
    assert not request.asks_for_task("u")
    assert request.asks_for_arm(Arm("a", 2, "sha256:a"))
    assert request.asks_for_arm(BASE_ARM)
    assert not request.asks_for_arm(Arm("b", 1, "sha256:b"))
    assert MatchingRequest().asks_for_task("any")


@pytest.mark.parametrize(("rate", "wanted", "most"), [(0.0, 512, 512), (10.0, 512, 10), (0.5, 512, 1)])
def test_a_batch_is_what_the_rate_allows_in_a_second_when_one_is_set(rate, wanted, most):
    assert Pace(rate).most(wanted) == most


def test_batches_wait_for_what_was_sent_when_a_rate_is_set():
    now = 100.0
    pauses: list[float] = []
    pace = Pace(10.0, now=lambda: now, sleep=pauses.append)
    pace.wait()
    pace.sent(5)
    pace.wait()
    now += 0.2
    pace.wait()
    now += 60.0
    pace.wait()
    pace.sent(1)
    pace.wait()
    assert pauses == pytest.approx([0.5, 0.3, 0.1])


def test_nothing_waits_when_no_rate_is_set():
    pauses: list[float] = []
    pace = Pace(0.0, sleep=pauses.append)
    pace.sent(10**6)
    pace.wait()
    assert pauses == []


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
    [
        {"queues": "index,other"},
        {"queues": ""},
        {"heartbeat_seconds": 6.0},
        {"lease_seconds": 0.1},
        {"matching_strategy": "guess"},
        {"matching_rate": 0.01},
    ],
)
def test_settings_are_refused_when_they_cannot_work(wrong):
    with pytest.raises(ValidationError):
        Settings(**URLS, **wrong)
