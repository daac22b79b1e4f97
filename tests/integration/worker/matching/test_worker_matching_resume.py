"""What survives a kill, what two workers share, and what an old claim may still do."""

import threading
from collections import Counter

import pytest

from lorauter.errors import Unavailable
from lorauter_worker.adapters.evaluators import make_evaluator
from lorauter_worker.service import outbox
from lorauter_worker.service.lease import Lease, LeaseLost


def test_work_goes_on_where_it_was_when_a_worker_dies_between_batches(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted({"": 4})

    def die() -> None:
        if len(evaluator.asked) == 3:
            raise SystemExit

    evaluator.before = die
    with pytest.raises(SystemExit):
        matchings.matcher(evaluator, matching_batch=4).drain()
    assert matchings.get(id_).done == 12
    assert matchings.parts(id_)[1].in_flight == 4
    matchings.free()
    heir = scripted({"": 4})
    matchings.matcher(heir, matching_batch=4).drain()
    assert Counter(evaluator.cells + heir.cells).most_common(1)[0][1] == 1
    done = matchings.get(id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", 24, 24)
    assert len(matchings.affinities()) == 6


def test_a_slice_ends_and_the_next_goes_on_when_time_is_over(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted()
    slices = 0
    while matchings.get(id_).end_time is None:
        matchings.matcher(evaluator, matching_batch=4, slice_seconds=0.0).drain()
        slices += 1
        assert all(row.attempts == 0 for row in matchings.rows())
        assert slices < 50
    assert evaluator.sizes == [4] * 6
    assert slices == 1 + 6 + 2 + 1  # the plan, the batches, the affinities of two tasks, the end
    assert len(set(evaluator.cells)) == 24


def test_operation_waits_and_then_fails_when_no_backend_answers(pool, matchings, scripted):
    id_ = matchings.start(task_ids=["sort"])

    def away() -> None:
        raise Unavailable("BACKEND_UNAVAILABLE", "nobody is there")

    evaluator = scripted(before=away)
    matchings.matcher(evaluator, max_attempts=99).drain()  # it may try again while it drains
    assert matchings.get(id_).state == "RUNNING"
    (part,) = matchings.parts(id_)
    assert part.in_flight == 0
    assert any(row.last_error.startswith("BACKEND_UNAVAILABLE") for row in matchings.rows())
    matchings.free()
    matchings.matcher(evaluator, max_attempts=2).drain()
    assert matchings.get(id_).state == "FAILED"
    assert matchings.get(id_).error.startswith("BACKEND_UNAVAILABLE")
    assert matchings.rows() == []
    assert pool.task_state("sort") == "EMBEDDED"


def test_operation_fails_at_once_when_its_strategy_is_unknown(pool, matchings, scripted):
    id_ = matchings.start(strategy="guess")
    matchings.matcher(scripted()).drain()
    assert matchings.get(id_).error.startswith("UNKNOWN_STRATEGY")
    assert matchings.rows() == []


def test_operation_waits_when_its_pool_has_no_backend(pool, matchings):
    pool.execute("DELETE FROM backend")
    id_ = matchings.start(task_ids=["sort"])
    matchings.matcher(make_evaluator).drain()
    assert matchings.get(id_).state == "RUNNING"
    assert any(row.last_error.startswith("NO_EVALUATOR") for row in matchings.rows())


def test_a_zombie_writes_nothing_when_its_work_was_taken_over(pool, matchings, scripted):
    id_ = matchings.start()
    zombie = scripted({"digest-a": 4, "digest-bb": 4, "": 4})
    heir = scripted()

    def freeze() -> None:
        zombie.before = lambda: None
        matchings.free()
        thread = threading.Thread(target=matchings.matcher(heir).drain)
        thread.start()
        thread.join()

    zombie.before = freeze
    matchings.matcher(zombie).drain()
    assert set(matchings.scores().values()) == {(0.0, 4)}
    done = matchings.get(id_)
    assert (done.state, done.done) == ("SUCCEEDED", 24)


def test_old_claim_raises_when_it_records(pool, matchings, scripted):
    matchings.start()
    claim = outbox.claim(pool.engine, "matching", "zombie", 10)
    pool.execute("UPDATE outbox SET fence = fence + 1")
    with pytest.raises(LeaseLost):
        matchings.matcher(scripted())._work(Lease(pool.engine, claim, 10), float("inf"))
    assert matchings.affinities() == {}


def test_no_cell_is_measured_twice_when_workers_share_the_parts(pool, matchings, scripted):
    for number in range(6):
        pool.put_task(f"task-{number}", pool.questions(f"topic-{number}"))
    pool.execute("DELETE FROM outbox")
    id_ = matchings.start()
    evaluators = [scripted(), scripted()]
    both = threading.Barrier(2, timeout=60)

    def meet() -> None:
        """Has both workers hold a part at the same time, once."""
        both.wait()
        for evaluator in evaluators:
            evaluator.before = lambda: None

    for evaluator in evaluators:
        evaluator.before = meet
    planner = matchings.matcher(scripted(), slice_seconds=0.0)
    planner.drain()
    assert len(matchings.parts(id_)) == 8
    with matchings.running(*(matchings.matcher(evaluator, matching_batch=5) for evaluator in evaluators)):
        pass
    cells = [cell for evaluator in evaluators for cell in evaluator.cells]
    assert len(cells) == len(set(cells)) == 8 * 12
    assert all(evaluator.cells for evaluator in evaluators)
    done = matchings.get(id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", 96, 96)
    assert done.progress["done_task_count"] == 8
    assert len(matchings.affinities()) == 24


def test_matchings_take_turns_when_two_want_the_same_task(pool, matchings, scripted):
    first, second = (matchings.start(task_ids=["sort"]) for _ in range(2))
    evaluator = scripted()

    def look() -> None:
        evaluator.before = lambda: None
        held = outbox.claim(pool.engine, "matching", "other", 10)
        while held is not None:
            assert "/" not in held.key
            held = outbox.claim(pool.engine, "matching", "other", 10)

    evaluator.before = look
    matchings.matcher(evaluator).drain()
    matchings.free()
    matchings.matcher(evaluator).drain()
    assert len(evaluator.cells) == len(set(evaluator.cells)) == 12
    assert [matchings.get(id_).state for id_ in (first, second)] == ["SUCCEEDED", "SUCCEEDED"]


def test_as_many_workers_are_woken_as_there_are_parts_when_a_matching_is_planned(pool, matchings, scripted):
    class Heard(list):
        wake = list.append

    wakeups = Heard()
    matchings.start()
    matchings.matcher(scripted(), wakeups=wakeups, slice_seconds=0.0).drain()
    assert wakeups.count("matching") == 3  # two parts, and what this slice leaves


@pytest.mark.parametrize(("tasks", "priorities"), [(["french"], (0, 5)), (["french", "sort"], (0, 0))])
def test_parts_are_claimed_by_priority_when_several_are_due(pool, matchings, scripted, tasks, priorities):
    pool.measure("french", "base", 0, 0.5)
    ids = [
        matchings.start(task_ids=[task], priority=priority)
        for task, priority in zip(["french", "sort"], priorities, strict=True)
    ]
    evaluator = scripted()
    matchings.matcher(evaluator).drain()
    assert [target.split()[0] for _, target in evaluator.cells][::8] == ["sort", "sort", "french"]
    assert {matchings.get(id_).state for id_ in ids} == {"SUCCEEDED"}
