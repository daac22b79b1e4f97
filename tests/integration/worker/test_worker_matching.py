"""Matching as an operation: what is measured, what survives a kill, and what a broken adapter costs."""

import threading
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import pytest
from sqlalchemy import event, text
from sqlmodel import Session, select

from lorauter.errors import Unavailable
from lorauter.store import create_engine, tables, write
from lorauter_worker.ports import Refused
from lorauter_worker.service import outbox
from lorauter_worker.service.automatching import start_matchings
from lorauter_worker.service.lease import LeaseLost
from lorauter_worker.service.matching import Matcher
from lorauter_worker.service.state import read_pool


class ScriptedEvaluator:
    """An evaluator that knows each adapter's share of right answers, and may be told to fail."""

    def __init__(self, right: dict[str, int], broken: AbstractSet[str] = frozenset()) -> None:
        """``right``: how many of each task's first examples an adapter's digest gets right."""
        self.right = right
        self.broken = broken
        self.asked: list[int] = []
        self.before: Callable[[], None] = lambda: None
        self.opened = self.closed = 0

    def __call__(self, urls, timeout_seconds) -> "ScriptedEvaluator":
        self.opened += 1
        return self

    def evaluate(self, questions, scoring):
        self.before()
        self.asked.append(len(questions))
        return [self._score(question) for question in questions]

    def close(self) -> None:
        self.closed += 1

    def _score(self, question):
        if question.adapter in self.broken:
            return Refused("weights do not fit")
        number = int(question.target.rsplit(" ", 1)[1])
        return float(number < self.right.get(question.adapter, 0))


@pytest.fixture
def make_matcher(registry, settings):
    def make(evaluator, **overrides) -> Matcher:
        class Silent:
            def wake(self, name: str) -> None:
                """The sweep finds the work."""

        chosen = settings.model_copy(update=overrides)
        return Matcher(registry.engine, evaluator, Silent(), chosen, "test")

    return make


@pytest.fixture
def pool(registry):
    """Two tasks of four examples, two adapters and a backend."""
    registry.add_pool()
    registry.add_backend("http://127.0.0.1:1")
    registry.put_task("french", registry.questions("french"))
    registry.put_task("sort", registry.questions("sort"))
    registry.add_version("a", "digest-a")
    registry.add_version("b", "digest-b")
    registry.execute("UPDATE task SET state = 'EMBEDDED'")
    registry.execute("DELETE FROM outbox")
    return registry


def affinities(registry) -> dict[tuple[str, str, int], tuple[float, int]]:
    with Session(registry.engine) as session:
        return {
            (row.task_id, row.adapter_id, row.adapter_version): (row.score, row.count)
            for row in session.exec(select(tables.Affinity))
        }


def start(registry, **request) -> str:
    """Starts a matching as the registry does."""
    with write(registry.engine, registry.tenant) as tx:
        operation = tables.Operation(
            tenant=registry.tenant,
            id=f"op-{tx.generation}",
            kind="matching",
            pool="main",
            request=request,
            create_time=tx.now,
            update_time=tx.now,
        )
        tx.session.add(operation)
        tx.owe("matching", operation.id)
    return operation.id


def operation(registry, id_):
    with Session(registry.engine) as session:
        return session.get(tables.Operation, (registry.tenant, id_))


def matching_rows(registry):
    return [row for row in registry.outbox() if row.topic == "matching"]


def test_pool_is_read_when_adapters_are_registered_meanwhile(pool):
    writer = type(pool)(create_engine(pool.engine.url.render_as_string(hide_password=False)), pool.tenant)
    added: list[str] = []

    def register(*_) -> None:
        added.append(f"new-{len(added)}")
        writer.add_version(added[-1], f"digest-{added[-1]}")

    with Session(pool.engine) as session:
        event.listen(pool.engine, "before_cursor_execute", register)
        try:
            state = read_pool(session, pool.tenant, "main")
        finally:
            event.remove(pool.engine, "before_cursor_execute", register)
    assert added
    assert all(adapter.versions for adapter in state.adapters)
    writer.engine.dispose()


def test_every_cell_is_measured_once_when_a_matching_starts_by_itself(pool, make_matcher):
    assert start_matchings(pool.engine, pool.tenant) == 1
    assert start_matchings(pool.engine, pool.tenant) == 0
    evaluator = ScriptedEvaluator({"digest-a": 4, "digest-b": 1, "": 2})
    make_matcher(evaluator).drain()
    assert affinities(pool) == {
        (task, arm, version): (score, 4)
        for task in ("french", "sort")
        for arm, version, score in (("a", 1, 1.0), ("b", 1, 0.25), ("base", 0, 0.5))
    }
    (done,) = pool.operations()
    assert (done.state, done.done, done.total, done.error) == ("SUCCEEDED", 24, 24, "")
    assert done.end_time is not None
    assert pool.task_state("sort") == pool.task_state("french") == "MATCHED"
    assert sum(evaluator.asked) == 24
    assert evaluator.opened == evaluator.closed == 1
    assert matching_rows(pool) == []
    assert {row.topic for row in pool.outbox()} == {"index"}
    assert start_matchings(pool.engine, pool.tenant) == 0
    with Session(pool.engine) as session:
        error = session.exec(select(tables.Affinity.standard_error).where(tables.Affinity.score == 0.25))
        assert error.first() == pytest.approx(0.25)


def test_only_new_cells_are_measured_when_an_adapter_arrives(pool, make_matcher):
    start_matchings(pool.engine, pool.tenant)
    make_matcher(ScriptedEvaluator({})).drain()
    pool.add_version("c", "digest-c")
    assert start_matchings(pool.engine, pool.tenant) == 1
    evaluator = ScriptedEvaluator({"digest-c": 3})
    make_matcher(evaluator).drain()
    assert sum(evaluator.asked) == 8
    assert affinities(pool)["sort", "c", 1] == (0.75, 4)
    assert pool.task_state("sort") == "MATCHED"


def test_no_matching_starts_when_there_is_no_active_engine(pool):
    pool.execute("UPDATE backend SET state = 'DRAINING'")
    assert start_matchings(pool.engine, pool.tenant) == 0
    pool.execute("UPDATE backend SET state = 'ACTIVE', kind = 'TGI'")
    assert start_matchings(pool.engine, pool.tenant) == 0


def test_tasks_are_matched_without_work_when_everything_was_imported(pool):
    for task in ("french", "sort"):
        for arm, version in (("a", 1), ("b", 1), ("base", 0)):
            pool.measure(task, arm, version, 0.5, imported=True)
    assert start_matchings(pool.engine, pool.tenant) == 0
    assert pool.task_state("sort") == "MATCHED"


def test_request_limits_what_is_measured_when_it_names_tasks_and_adapters(pool, make_matcher):
    id_ = start(pool, task_ids=["sort"], adapter_ids=["b"])
    evaluator = ScriptedEvaluator({"digest-b": 2})
    make_matcher(evaluator).drain()
    assert set(affinities(pool)) == {("sort", "b", 1), ("sort", "base", 0)}
    assert operation(pool, id_).state == "SUCCEEDED"

    start(pool, task_ids=["sort"], adapter_ids=["b"], remeasure=True)
    make_matcher(ScriptedEvaluator({"digest-b": 4})).drain()
    assert affinities(pool)["sort", "b", 1] == (1.0, 4)


def test_work_goes_on_where_it_was_when_a_worker_dies_between_batches(pool, make_matcher):
    id_ = start(pool)
    evaluator = ScriptedEvaluator({"": 4})

    def die() -> None:
        if len(evaluator.asked) == 3:
            raise SystemExit

    evaluator.before = die
    with pytest.raises(SystemExit):
        make_matcher(evaluator, matching_batch=4).drain()
    assert operation(pool, id_).done == 12
    assert len(affinities(pool)) == 3
    # tasks show no affinities before their base is measured, which is last
    pool.execute("UPDATE outbox SET lease_until = now(), available_at = now()")
    heir = ScriptedEvaluator({"": 4})
    make_matcher(heir, matching_batch=4).drain()
    assert sum(evaluator.asked) + sum(heir.asked) == 24
    done = operation(pool, id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", 24, 24)


def test_progress_is_seen_between_batches_when_a_matching_runs(pool, make_matcher):
    id_ = start(pool)
    evaluator = ScriptedEvaluator({})
    seen = []

    def look() -> None:
        row = operation(pool, id_)
        seen.append((row.state, row.done, row.total, pool.task_state("french"), pool.task_state("sort")))

    evaluator.before = look
    make_matcher(evaluator, matching_batch=8).drain()
    assert seen == [
        ("RUNNING", 0, 24, "MATCHING", "EMBEDDED"),
        ("RUNNING", 8, 24, "MATCHING", "EMBEDDED"),
        ("RUNNING", 12, 24, "MATCHED", "MATCHING"),
        ("RUNNING", 20, 24, "MATCHED", "MATCHING"),
    ]


def test_a_slice_ends_and_the_next_goes_on_when_time_is_over(pool, make_matcher):
    id_ = start(pool)
    evaluator = ScriptedEvaluator({})
    matcher = make_matcher(evaluator, matching_batch=4, slice_seconds=0.0)
    slices = 0
    while operation(pool, id_).end_time is None:
        matcher.drain()
        slices += 1
        if slices == 1:
            # the first slice had no time at all; the row is due again at once
            assert matching_rows(pool)[0].attempts == 0
            matcher = make_matcher(evaluator, matching_batch=4, slice_seconds=0.03)
        assert slices < 50
    assert sum(evaluator.asked) == 24


def test_matching_stops_between_batches_when_it_is_cancelled(pool, make_matcher):
    id_ = start(pool)
    evaluator = ScriptedEvaluator({})

    def cancel() -> None:
        pool.execute("UPDATE operation SET cancel_requested = true")

    evaluator.before = cancel
    make_matcher(evaluator, matching_batch=4).drain()
    assert sum(evaluator.asked) == 4
    stopped = operation(pool, id_)
    assert (stopped.state, stopped.done, stopped.total) == ("CANCELLED", 4, 24)
    assert len(affinities(pool)) == 1
    assert pool.task_state("french") == "EMBEDDED"
    assert matching_rows(pool) == []


def test_a_broken_adapter_is_quarantined_and_the_rest_measured_when_the_backend_refuses_it(
    pool, make_matcher
):
    id_ = start(pool)
    make_matcher(ScriptedEvaluator({"digest-b": 4}, broken={"digest-a"}), matching_batch=4).drain()
    assert operation(pool, id_).state == "SUCCEEDED"
    assert set(affinities(pool)) == {
        (task, arm, version) for task in ("french", "sort") for arm, version in (("b", 1), ("base", 0))
    }
    state, reason = pool.scalar(
        "SELECT ARRAY[state, state_reason] FROM adapter_version WHERE adapter_id = 'a'"
    )
    assert state == "QUARANTINED"
    assert "weights do not fit" in reason
    assert start_matchings(pool.engine, pool.tenant) == 0
    assert pool.task_state("sort") == pool.task_state("french") == "MATCHED"


def test_no_adapter_is_quarantined_when_the_backend_refuses_them_all(pool, make_matcher):
    id_ = start(pool)
    make_matcher(ScriptedEvaluator({}, broken={"digest-a", "digest-b"})).drain()
    failed = operation(pool, id_)
    assert failed.state == "FAILED"
    assert failed.error.startswith("BACKEND_REFUSES_ADAPTERS")
    assert pool.scalar("SELECT count(*) FROM adapter_version WHERE state = 'ACTIVE'") == 2
    assert matching_rows(pool) == []


def test_operation_waits_and_then_fails_when_no_backend_answers(pool, make_matcher):
    id_ = start(pool)

    def away() -> None:
        raise Unavailable("BACKEND_UNAVAILABLE", "nobody is there")

    evaluator = ScriptedEvaluator({})
    evaluator.before = away
    make_matcher(evaluator, max_attempts=2).drain()
    assert operation(pool, id_).state == "RUNNING"
    assert matching_rows(pool)[0].last_error.startswith("BACKEND_UNAVAILABLE")
    pool.execute("UPDATE outbox SET available_at = now()")
    make_matcher(evaluator, max_attempts=2).drain()
    assert operation(pool, id_).state == "FAILED"
    assert operation(pool, id_).error.startswith("BACKEND_UNAVAILABLE")


def test_a_zombie_writes_nothing_when_its_work_was_taken_over(pool, make_matcher):
    id_ = start(pool)
    zombie = ScriptedEvaluator({"digest-a": 4, "digest-b": 4, "": 4})
    heir = ScriptedEvaluator({})

    def freeze() -> None:
        zombie.before = lambda: None
        pool.execute("UPDATE outbox SET lease_until = now(), available_at = now() WHERE topic = 'matching'")
        thread = threading.Thread(target=make_matcher(heir).drain)
        thread.start()
        thread.join()

    zombie.before = freeze
    make_matcher(zombie).drain()
    assert set(affinities(pool).values()) == {(0.0, 4)}
    done = operation(pool, id_)
    assert (done.state, done.done) == ("SUCCEEDED", 24)


def test_a_task_that_changes_is_measured_in_its_new_version_when_matching_runs(pool, make_matcher):
    id_ = start(pool)
    evaluator = ScriptedEvaluator({"digest-a": 4})

    def replace() -> None:
        evaluator.before = lambda: None
        pool.put_task("french", pool.questions("new french", 6))
        pool.delete_task("sort")

    evaluator.before = replace
    make_matcher(evaluator).drain()
    assert operation(pool, id_).state == "SUCCEEDED"
    with pool.engine.connect() as connection:
        rows = connection.execute(text("SELECT DISTINCT task_id, task_version, count FROM affinity")).all()
    assert rows == [("french", 2, 6)]


def test_scores_of_a_deleted_task_are_dropped_when_its_id_comes_again_meanwhile(pool, make_matcher):
    start(pool)
    evaluator = ScriptedEvaluator({"digest-a": 4})

    def create_again() -> None:
        evaluator.before = lambda: None
        pool.delete_task("french")
        pool.put_task("french", pool.questions("new french", 6))

    evaluator.before = create_again
    make_matcher(evaluator).drain()
    with pool.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT task_version, count, count(*) FROM affinity WHERE task_id = 'french' GROUP BY 1, 2")
        ).all()
    assert rows == [(1, 6, 3)]


def test_cancelled_matching_stays_so_when_nothing_new_arrives(pool, make_matcher):
    assert start_matchings(pool.engine, pool.tenant) == 1
    evaluator = ScriptedEvaluator({})

    def cancel() -> None:
        pool.execute("UPDATE operation SET cancel_requested = true, update_time = clock_timestamp()")

    evaluator.before = cancel
    make_matcher(evaluator, matching_batch=4).drain()
    assert start_matchings(pool.engine, pool.tenant) == 0
    pool.touch()
    assert start_matchings(pool.engine, pool.tenant) == 0
    pool.add_version("c", "digest-c")
    assert start_matchings(pool.engine, pool.tenant) == 1


def test_matching_starts_again_when_a_task_came_after_the_last_was_asked_to_stop(pool, make_matcher):
    assert start_matchings(pool.engine, pool.tenant) == 1
    evaluator = ScriptedEvaluator({})

    def cancel() -> None:
        pool.execute("UPDATE operation SET cancel_requested = true, update_time = clock_timestamp()")
        pool.put_task("third", pool.questions("third"))

    evaluator.before = cancel
    make_matcher(evaluator, matching_batch=4).drain()
    assert [row.state for row in pool.operations()] == ["CANCELLED"]
    assert start_matchings(pool.engine, pool.tenant) == 1


def test_no_deadlock_when_tasks_become_matched_while_the_registry_writes(pool):
    pool.put_task("french", pool.questions("french"))
    pool.put_task("sort", pool.questions("sort"))
    pool.execute("UPDATE task SET state = 'EMBEDDED'")
    for task in ("french", "sort"):
        for arm, version in (("a", 1), ("b", 1), ("base", 0)):
            pool.measure(task, arm, version, 0.5)
    marking = threading.Thread(target=start_matchings, args=(pool.engine, pool.tenant))
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with write(pool.engine, pool.tenant) as tx:
        marking.start()
        pool.eventually(lambda: pool.scalar(waiting))
        # Fails at once if a task is locked by who waits for this write.
        tx.session.connection().execute(text("SELECT 1 FROM task FOR UPDATE NOWAIT"))
    marking.join()
    assert pool.task_state("french") == pool.task_state("sort") == "MATCHED"


def test_examples_are_limited_evenly_when_a_task_has_many(pool, make_matcher):
    pool.put_task("sort", pool.questions("sort", 40))
    start(pool, task_ids=["sort"])
    evaluator = ScriptedEvaluator({"": 20})
    make_matcher(evaluator, matching_examples=10).drain()
    assert sum(evaluator.asked) == 30
    assert affinities(pool)["sort", "base", 0] == (0.5, 10)


def test_index_shows_a_task_measured_only_when_its_base_is(pool, make_matcher, index_worker):
    start(pool)
    pool.touch()
    evaluator = ScriptedEvaluator({"digest-a": 4, "": 1})
    seen = []

    def look() -> None:
        index_worker.indexer.drain()
        seen.append([len(task.affinities) for task in index_worker.pool().tasks])

    evaluator.before = look
    make_matcher(evaluator, matching_batch=4).drain()
    assert seen == [[0, 0], [0, 0], [0, 0], [3, 0], [3, 0], [3, 0]]
    index_worker.indexer.drain()
    tasks = index_worker.pool().tasks
    assert [affinity.adapter_id for affinity in tasks[1].affinities] == ["a", "base", "b"]


def test_old_claim_raises_when_it_records(pool, make_matcher):
    start(pool)
    claim = outbox.claim(pool.engine, "matching", "zombie", 10)
    pool.execute("UPDATE outbox SET fence = fence + 1")
    matcher = make_matcher(ScriptedEvaluator({}))
    from lorauter_worker.service.lease import Lease

    with pytest.raises(LeaseLost):
        matcher._work(Lease(pool.engine, claim, 10), float("inf"))
    assert affinities(pool) == {}
