"""When a matching stops: budgets over all workers, cancelling, and how fast it asks."""

import threading

import pytest

from lorauter_worker.domain.pacing import Pace
from lorauter_worker.service.automatching import start_matchings


def test_matching_stops_at_its_budget_when_more_is_left(pool, matchings, scripted):
    id_ = matchings.start(max_evaluations=14)
    evaluator = scripted()
    matchings.matcher(evaluator, matching_batch=4).drain()
    stopped = matchings.get(id_)
    assert len(evaluator.cells) == stopped.done == 14
    assert (stopped.state, stopped.message) == (
        "CANCELLED",
        "stopped by its budget of 14 evaluations: 1 of 2 tasks are left; start again to go on",
    )
    assert stopped.total == 24
    assert (pool.task_state("french"), pool.task_state("sort")) == ("MATCHED", "EMBEDDED")
    assert matchings.rows() == []

    assert start_matchings(pool.engine, pool.tenant) == 0
    again = matchings.start()
    rest = scripted()
    matchings.matcher(rest).drain()
    assert (matchings.get(again).state, len(rest.cells)) == ("SUCCEEDED", 10)
    assert not set(rest.cells) & set(evaluator.cells)


def test_matching_succeeds_when_its_budget_is_just_enough(pool, matchings, scripted):
    id_ = matchings.start(max_evaluations=24)
    matchings.matcher(scripted(), matching_batch=5).drain()
    done = matchings.get(id_)
    assert (done.state, done.done) == ("SUCCEEDED", 24)


@pytest.mark.parametrize("budget", [1, 7, 30, 50])
def test_budget_is_kept_to_the_evaluation_when_workers_share_it(pool, matchings, scripted, budget):
    for number in range(6):
        pool.put_task(f"task-{number}", pool.questions(f"topic-{number}"))
    pool.execute("DELETE FROM outbox")
    id_ = matchings.start(max_evaluations=budget)
    evaluators = [scripted(), scripted(), scripted()]
    sent, most, lock = 0, 0, threading.Lock()

    def count() -> None:
        nonlocal sent, most
        with lock:
            in_flight = sum(part.in_flight for part in matchings.parts(id_))
            done = sum(part.done for part in matchings.parts(id_))
            most = max(most, done)
            sent = max(sent, in_flight)

    for evaluator in evaluators:
        evaluator.before = count
    deadline = 60
    while matchings.get(id_).end_time is None and deadline:
        with matchings.running(*(matchings.matcher(each, matching_batch=4) for each in evaluators)):
            pass
        pool.execute("UPDATE outbox SET available_at = now()")
        deadline -= 1
    stopped = matchings.get(id_)
    cells = [cell for evaluator in evaluators for cell in evaluator.cells]
    assert len(cells) == len(set(cells)) == stopped.done == budget
    assert stopped.state == "CANCELLED"
    assert most <= budget
    assert matchings.rows() == []


def test_what_is_in_flight_counts_when_another_worker_asks_for_the_rest(pool, matchings, scripted):
    id_ = matchings.start(max_evaluations=8)
    slow, other = scripted(), scripted()

    def meanwhile() -> None:
        slow.before = lambda: None
        with matchings.running(matchings.matcher(other, matching_batch=8)):
            pass

    slow.before = meanwhile
    matchings.matcher(slow, matching_batch=8).drain()
    assert (len(slow.cells), other.cells) == (8, [])
    matchings.free()
    matchings.matcher(other).drain()
    stopped = matchings.get(id_)
    assert (stopped.state, stopped.done, other.cells) == ("CANCELLED", 8, [])


def test_matching_stops_when_its_time_is_over(pool, matchings, scripted):
    id_ = matchings.start(max_seconds=3600.0)
    evaluator = scripted()

    def pass_time() -> None:
        pool.execute("UPDATE operation SET create_time = create_time - interval '1 hour'")

    evaluator.before = pass_time
    matchings.matcher(evaluator, matching_batch=4).drain()
    stopped = matchings.get(id_)
    assert (stopped.state, stopped.done) == ("CANCELLED", 4)
    assert stopped.message == (
        "stopped by its budget of 3600 seconds: 2 of 2 tasks are left; start again to go on"
    )


def test_nothing_is_measured_when_time_was_over_before_the_beginning(pool, matchings, scripted):
    id_ = matchings.start(max_seconds=0.001)
    evaluator = scripted()
    pool.eventually(lambda: pool.scalar("SELECT bool_and(create_time + '1 s' < now()) FROM operation"))
    matchings.matcher(evaluator).drain()
    assert (matchings.get(id_).state, evaluator.cells) == ("CANCELLED", [])


def test_matching_stops_between_batches_when_it_is_cancelled(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted()

    def cancel() -> None:
        evaluator.before = lambda: None
        matchings.cancel(id_)

    evaluator.before = cancel
    matchings.matcher(evaluator, matching_batch=4).drain()
    stopped = matchings.get(id_)
    assert (stopped.state, stopped.done, stopped.total) == ("CANCELLED", 4, 24)
    assert evaluator.sizes == [4]
    assert len(matchings.stored("french", "")) == 4
    assert matchings.affinities() == {}
    assert pool.task_state("french") == "EMBEDDED"
    assert matchings.rows() == []


def test_batches_in_flight_are_recorded_when_a_matching_is_cancelled_elsewhere(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted()

    def cancel() -> None:
        evaluator.before = lambda: None
        matchings.cancel(id_)
        with matchings.running(matchings.matcher(scripted())):
            pass
        assert matchings.get(id_).end_time is None

    evaluator.before = cancel
    matchings.matcher(evaluator, matching_batch=4).drain()
    matchings.free()
    matchings.matcher(scripted()).drain()
    stopped = matchings.get(id_)
    assert (stopped.state, stopped.done) == ("CANCELLED", 4)


def test_cancelled_matching_stays_so_when_nothing_new_arrives(pool, matchings, scripted):
    assert start_matchings(pool.engine, pool.tenant) == 1
    (operation,) = pool.operations()
    matchings.cancel(operation.id)
    matchings.matcher(scripted()).drain()
    assert start_matchings(pool.engine, pool.tenant) == 0
    pool.touch()
    assert start_matchings(pool.engine, pool.tenant) == 0
    pool.add_version("c", "digest-ccc")
    assert start_matchings(pool.engine, pool.tenant) == 1


def test_matching_starts_again_when_a_task_came_after_the_last_was_asked_to_stop(pool, matchings, scripted):
    assert start_matchings(pool.engine, pool.tenant) == 1
    (operation,) = pool.operations()
    evaluator = scripted()

    def cancel() -> None:
        evaluator.before = lambda: None
        matchings.cancel(operation.id)
        pool.put_task("third", pool.questions("third"))

    evaluator.before = cancel
    matchings.matcher(evaluator, matching_batch=4).drain()
    assert [row.state for row in pool.operations()] == ["CANCELLED"]
    assert start_matchings(pool.engine, pool.tenant) == 1


def test_batches_are_paced_when_a_rate_is_set(pool, matchings, scripted):
    now, pauses = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        pauses.append(seconds)
        now += seconds

    matchings.start(task_ids=["sort"])
    evaluator = scripted()
    matchings.matcher(evaluator, pace=Pace(4.0, now=lambda: now, sleep=sleep)).drain()
    assert evaluator.sizes == [4, 4, 4]
    assert pauses == [1.0, 1.0]
