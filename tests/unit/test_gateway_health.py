"""Replicas leave on faults and come back by a probe and one request, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorauter_gateway.domain.health import FAULTS, MOST_PAUSE_SECONDS, Health, State, set_aside


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Seconds that pass when the test says so."""
    return Clock()


def ejected(clock: Clock) -> Health:
    health = Health(clock, 1.0)
    for _ in range(FAULTS):
        health.fault()
    assert health.state is State.EJECTED
    return health


def test_only_consecutive_faults_eject(clock: Clock) -> None:
    health = Health(clock, 1.0)
    for _ in range(FAULTS - 1):
        health.fault()
    health.success()
    for _ in range(FAULTS - 1):
        health.fault()
    assert health.state is State.HEALTHY
    health.fault()
    assert (health.state, health.ejections, health.ejected_at) == (State.EJECTED, 1, 100.0)


def test_ejected_replica_is_asked_once_a_pause(clock: Clock) -> None:
    health = ejected(clock)
    assert not health.probe_is_due()
    clock.now += 1.0
    assert health.probe_is_due()
    health.probed(False)
    assert (health.state, health.probe_is_due()) == (State.EJECTED, False)
    clock.now += 1.0
    assert health.probe_is_due()
    health.probed(True)
    assert (health.state, health.probe_is_due()) == (State.HALF_OPEN, False)


def test_half_open_replica_takes_one_request_at_a_time(clock: Clock) -> None:
    health = ejected(clock)
    health.probed(True)
    assert health.may_try()
    health.begin()
    assert not health.may_try()
    health.end()
    assert (health.state, health.may_try()) == (State.HALF_OPEN, True)
    health.begin()
    health.success()
    assert (health.state, health.may_try(), health.faults) == (State.HEALTHY, True, 0)


def test_answer_that_begins_lets_others_in_and_the_next_fault_ejects(clock: Clock) -> None:
    health = ejected(clock)
    health.probed(True)
    health.begin()
    health.began()
    assert (health.state, health.may_try()) == (State.HEALTHY, True)
    health.fault()
    assert (health.state, health.ejections) == (State.EJECTED, 2)
    health.probed(True)
    health.began()
    health.success()
    health.fault()
    assert (health.state, health.ejections) == (State.HEALTHY, 2)
    health.began()
    assert health.faults == 1


def test_failed_trial_ejects_again_with_twice_the_pause(clock: Clock) -> None:
    health = ejected(clock)
    for pause in (2.0, 4.0, MOST_PAUSE_SECONDS, MOST_PAUSE_SECONDS):
        health.probed(True)
        health.begin()
        health.fault()
        assert health.state is State.EJECTED
        clock.now += pause - 0.01
        assert not health.probe_is_due()
        clock.now += 0.01
        assert health.probe_is_due()
    health.probed(True)
    health.success()
    for _ in range(FAULTS):
        health.fault()
    clock.now += 1.0
    assert health.probe_is_due()


def test_late_answers_of_an_ejected_replica_change_nothing_but_for_a_success(clock: Clock) -> None:
    health = ejected(clock)
    health.fault()
    assert (health.state, health.ejections) == (State.EJECTED, 1)
    health.success()
    assert health.state is State.HEALTHY
    health.probed(False)
    assert health.state is State.HEALTHY


def test_no_more_than_half_of_a_pool_is_set_aside(clock: Clock) -> None:
    alone = {"a": ejected(clock)}
    assert set_aside(alone) == (set(), {"a"})
    pair = {"a": ejected(clock), "b": Health(clock, 1.0)}
    assert set_aside(pair) == ({"a"}, set())
    clock.now += 1
    pair["b"] = ejected(clock)
    assert set_aside(pair) == ({"a"}, {"b"})


@given(st.lists(st.integers(0, 3), max_size=9))
def test_somebody_is_always_left(ages: list[int]) -> None:
    clock = Clock()
    healths = {}
    for number, age in enumerate(ages):
        clock.now = 100.0 + age
        healths[str(number)] = ejected(clock) if age else Health(clock, 1.0)
    aside, last = set_aside(healths)
    broken = {name for name, health in healths.items() if health.state is State.EJECTED}
    assert aside | last == broken
    assert not aside & last
    assert len(aside) <= len(healths) // 2
    assert all(healths[a].ejected_at <= healths[b].ejected_at for a in aside for b in last)
    assert not healths or len(aside) < len(healths)


@given(
    st.lists(
        st.sampled_from(["fault", "success", "begin", "began", "end", "well", "ill", "second"]), max_size=60
    )
)
def test_states_change_only_as_they_may(events: list[str]) -> None:
    clock = Clock()
    health = Health(clock, 1.0)
    for event in events:
        before, faults = health.state, health.faults
        match event:
            case "second":
                clock.now += 1
            case "well" | "ill":
                health.probed(event == "well")
            case _:
                getattr(health, event)()
        change = (before, health.state)
        if change == (State.HEALTHY, State.EJECTED):
            assert (event, faults) == ("fault", FAULTS - 1)
        elif change == (State.EJECTED, State.HALF_OPEN):
            assert event == "well"
        elif change == (State.HALF_OPEN, State.EJECTED):
            assert event == "fault"
        elif before is not health.state:
            assert health.state is State.HEALTHY
            assert event == "success" or (event, before) == ("began", State.HALF_OPEN)
