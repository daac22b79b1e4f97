"""How many requests a replica is given, and how many are tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lorauter_gateway.domain.limits import (
    LEAST_RETRIES,
    LEAST_SUCCESSES,
    MOST_RETRIES,
    WINDOW_SECONDS,
    InFlight,
    RetryBudget,
)


def test_refusal_lowers_the_limit_to_what_the_replica_has() -> None:
    requests = InFlight(256)
    for _ in range(10):
        requests.enter()
    requests.refused()
    assert requests.limit == 9
    requests.leave()
    assert not requests.has_room()
    requests.leave()
    assert requests.has_room()


def test_limit_is_never_under_one() -> None:
    requests = InFlight(8)
    requests.enter()
    for _ in range(3):
        requests.refused()
    assert requests.limit == 1


def test_limit_grows_back_by_one_per_so_many_answers() -> None:
    requests = InFlight(12)
    for _ in range(3):
        requests.enter()
    requests.refused()
    assert requests.limit == 2
    for _ in range(LEAST_SUCCESSES - 1):
        requests.succeeded()
    assert requests.limit == 2
    requests.succeeded()
    assert requests.limit == 3
    for _ in range(LEAST_SUCCESSES * 100):
        requests.succeeded()
    assert requests.limit == 12


def test_registered_limit_replaces_the_old_one_but_not_a_lowered_one() -> None:
    requests = InFlight(256)
    requests.allow(8)
    assert requests.limit == 8
    requests.allow(16)
    assert requests.limit == 16
    for _ in range(5):
        requests.enter()
    requests.refused()
    requests.allow(32)
    assert requests.limit == 4
    requests.allow(2)
    assert requests.limit == 2


@given(
    st.lists(st.sampled_from(["enter", "leave", "refused", "succeeded"]), max_size=300), st.integers(1, 40)
)
def test_limit_stays_within_one_and_the_most(events: list[str], most: int) -> None:
    requests = InFlight(most)
    for event in events:
        if event == "enter" and not requests.has_room():
            continue
        if event in ("leave", "refused") and not requests.count:
            continue
        getattr(requests, event)()
        assert 1 <= requests.limit <= most
        assert requests.count >= 0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_few_retries_are_allowed_without_traffic() -> None:
    budget = RetryBudget(Clock())
    assert [budget.take() for _ in range(LEAST_RETRIES + 1)] == [True] * LEAST_RETRIES + [False]


def test_retries_are_a_share_of_the_last_seconds() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    for _ in range(200):
        budget.note_request()
    assert sum(budget.take() for _ in range(200)) == MOST_RETRIES * 200
    clock.now += WINDOW_SECONDS - 1
    assert not budget.take()
    clock.now += 1
    assert sum(budget.take() for _ in range(200)) == LEAST_RETRIES


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60), st.integers(0, 60)), max_size=40))
def test_budget_holds_in_every_window(steps: list[tuple[int, int, int]]) -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    requests: list[float] = []
    retries: list[float] = []
    for pause, asked, retried in steps:
        clock.now += pause
        for _ in range(asked):
            budget.note_request()
            requests.append(clock.now)
        recent = clock.now - WINDOW_SECONDS
        for _ in range(retried):
            is_left = sum(t > recent for t in retries) < max(
                LEAST_RETRIES, MOST_RETRIES * sum(t > recent for t in requests)
            )
            assert budget.take() is is_left
            if is_left:
                retries.append(clock.now)
