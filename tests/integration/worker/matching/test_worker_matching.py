"""Matching as an operation: what is measured, what becomes of it, and what is not measured twice."""

import threading

import pytest
from sqlalchemy import event, text
from sqlmodel import Session

from lorauter.store import write
from lorauter_worker.service.automatching import start_matchings
from lorauter_worker.service.lacking import read_arms

ARMS = (("a", 1), ("b", 1), ("base", 0))


def test_every_cell_is_measured_once_when_a_matching_starts_by_itself(pool, matchings, scripted):
    assert start_matchings(pool.engine, pool.tenant) == 1
    assert start_matchings(pool.engine, pool.tenant) == 0
    evaluator = scripted({"digest-a": 4, "digest-bb": 1, "": 2})
    matchings.matcher(evaluator).drain()
    assert matchings.scores() == {
        (task, arm, version): (score, 4)
        for task in ("french", "sort")
        for arm, version, score in (("a", 1, 1.0), ("b", 1, 0.25), ("base", 0, 0.5))
    }
    (done,) = pool.operations()
    assert (done.state, done.done, done.total, done.error) == ("SUCCEEDED", 24, 24, "")
    assert done.progress == {
        "strategy": "exhaustive",
        "task_count": 2,
        "done_task_count": 2,
        "alive": [4],
        "quarantined_count": 0,
    }
    assert done.end_time is not None
    assert pool.task_state("sort") == pool.task_state("french") == "MATCHED"
    assert sorted(evaluator.cells) == sorted(set(evaluator.cells))
    assert len(evaluator.cells) == 24
    assert evaluator.opened == evaluator.closed == 2
    assert matchings.rows() == []
    assert {row.topic for row in pool.outbox()} == {"index"}
    assert start_matchings(pool.engine, pool.tenant) == 0


def test_affinities_carry_their_evidence_when_a_task_is_matched(pool, matchings, scripted):
    pool.put_task("sort", pool.questions("sort", 40))
    matchings.start(task_ids=["sort"])
    matchings.matcher(scripted({"digest-a": 40, "digest-bb": 1, "": 2})).drain()
    rows = matchings.affinities()
    best, worse, base = (rows["sort", arm, version] for arm, version in ARMS)
    assert best.eligible
    assert best.lift > best.lift_error > 0
    assert (best.judged_count, best.judged_score) == (20, 1.0)
    assert not worse.eligible
    assert worse.shrunk_score <= base.shrunk_score == base.score == 0.05
    assert best.likelihood > worse.likelihood
    assert worse.standard_error == pytest.approx(0.025)


def test_only_new_cells_are_measured_when_an_adapter_arrives(pool, matchings, scripted):
    start_matchings(pool.engine, pool.tenant)
    matchings.matcher(scripted()).drain()
    pool.add_version("c", "digest-ccc")
    assert start_matchings(pool.engine, pool.tenant) == 1
    evaluator = scripted({"digest-ccc": 3})
    matchings.matcher(evaluator).drain()
    assert {digest for digest, _ in evaluator.cells} == {"digest-ccc"}
    assert len(evaluator.cells) == 8
    assert matchings.scores()["sort", "c", 1] == (0.75, 4)
    assert pool.task_state("sort") == "MATCHED"


def test_no_matching_starts_when_there_is_no_active_backend(pool, matchings, scripted):
    pool.execute("UPDATE backend SET state = 'DRAINING'")
    assert start_matchings(pool.engine, pool.tenant) == 0
    pool.add_backend("http://127.0.0.1:2", kind="TGI")
    assert start_matchings(pool.engine, pool.tenant) == 1


def test_active_backends_alone_are_asked_when_some_are_draining(pool, matchings, scripted):
    pool.add_backend("http://127.0.0.1:2", kind="TGI")
    pool.add_backend("http://127.0.0.1:3", kind="VLLM", state="DRAINING")
    matchings.start()
    evaluator = scripted()
    matchings.matcher(evaluator).drain()
    assert sorted(evaluator.backends) == [("ENGINE", "http://127.0.0.1:1"), ("TGI", "http://127.0.0.1:2")]


def test_tasks_are_matched_without_work_when_everything_was_imported(pool):
    for task in ("french", "sort"):
        for arm, version in ARMS:
            pool.measure(task, arm, version, 0.5, imported=True)
    assert start_matchings(pool.engine, pool.tenant) == 0
    assert pool.task_state("sort") == "MATCHED"


def test_imported_affinities_stay_when_another_adapter_is_measured(pool, matchings, scripted):
    for arm, version in ARMS:
        pool.measure("sort", arm, version, 0.5, imported=True)
    pool.add_version("c", "digest-ccc")
    matchings.start(task_ids=["sort"])
    evaluator = scripted({"digest-ccc": 3})
    matchings.matcher(evaluator).drain()
    assert {digest for digest, _ in evaluator.cells} == {"", "digest-ccc"}
    rows = matchings.affinities()
    assert (rows["sort", "a", 1].imported, rows["sort", "a", 1].score) == (True, 0.5)
    assert (rows["sort", "base", 0].imported, rows["sort", "base", 0].score) == (False, 0.0)


def test_request_limits_what_is_measured_when_it_names_tasks_and_adapters(pool, matchings, scripted):
    id_ = matchings.start(task_ids=["sort"], adapter_ids=["b"])
    matchings.matcher(scripted({"digest-bb": 2})).drain()
    assert set(matchings.scores()) == {("sort", "b", 1), ("sort", "base", 0)}
    assert matchings.get(id_).state == "SUCCEEDED"
    assert pool.task_state("sort") == "EMBEDDED"

    evaluator = scripted({"digest-a": 1})
    matchings.start(task_ids=["sort"])
    matchings.matcher(evaluator).drain()
    assert {digest for digest, _ in evaluator.cells} == {"digest-a"}
    assert matchings.scores()["sort", "b", 1] == (0.5, 4)
    assert pool.task_state("sort") == "MATCHED"


def test_only_what_is_asked_for_is_replaced_when_it_is_measured_again(pool, matchings, scripted):
    matchings.start()
    matchings.matcher(scripted({"digest-a": 2, "digest-bb": 2})).drain()
    id_ = matchings.start(task_ids=["sort"], adapter_ids=["b"], remeasure=True)
    evaluator = scripted({"digest-bb": 4, "digest-a": 4})
    matchings.matcher(evaluator, matching_batch=3).drain()
    assert sorted(evaluator.cells) == sorted(
        (digest, f"sort answer {number}") for digest in ("", "digest-bb") for number in range(4)
    )
    scores = matchings.scores()
    assert (scores["sort", "b", 1], scores["sort", "a", 1]) == ((1.0, 4), (0.5, 4))
    assert scores["french", "b", 1] == (0.5, 4)
    assert matchings.get(id_).done == 8


def test_an_adapter_without_rounds_left_is_not_asked_when_the_strategy_drops_it(pool, matchings, scripted):
    pool.put_task("sort", pool.questions("sort", 40))
    for number in range(30):
        pool.add_version(f"w{number}", f"worse-{number}")
    id_ = matchings.start(task_ids=["sort"], strategy="default")
    evaluator = scripted({"digest-a": 40, "digest-bb": 39})
    matchings.matcher(evaluator).drain()
    done = matchings.get(id_)
    assert done.state == "SUCCEEDED"
    assert done.progress["strategy"] == "default"
    assert done.progress["alive"][0] == 32
    assert done.done == done.total == len(evaluator.cells) < 33 * 40
    rows = matchings.affinities()
    assert (rows["sort", "a", 1].count, rows["sort", "base", 0].count) == (40, 40)
    assert len(rows) == 33
    assert any(row.round > 0 and row.count < 40 for row in rows.values())


def test_progress_is_seen_between_batches_when_a_matching_runs(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted()
    seen = []

    def look() -> None:
        row = matchings.get(id_)
        progress = row.progress["done_task_count"]
        states = (pool.task_state("french"), pool.task_state("sort"))
        seen.append((row.state, row.done, row.total, progress, *states))

    evaluator.before = look
    matchings.matcher(evaluator, matching_batch=8).drain()
    assert seen == [
        ("RUNNING", 0, 24, 0, "MATCHING", "EMBEDDED"),
        ("RUNNING", 8, 24, 0, "MATCHING", "EMBEDDED"),
        ("RUNNING", 12, 24, 1, "MATCHED", "MATCHING"),
        ("RUNNING", 20, 24, 1, "MATCHED", "MATCHING"),
    ]
    assert evaluator.sizes == [8, 4, 8, 4]


def test_examples_are_limited_when_a_task_has_many(pool, matchings, scripted):
    pool.put_task("sort", pool.questions("sort", 40) + pool.questions("sort", 20))
    matchings.start(task_ids=["sort"])
    evaluator = scripted()
    matchings.matcher(evaluator).drain()
    assert len(evaluator.cells) == 3 * 40
    matchings.start(task_ids=["sort"], remeasure=True)
    few = scripted()
    matchings.matcher(few, matching_examples=10).drain()
    assert len(few.cells) == 30
    assert matchings.scores()["sort", "base", 0] == (0.0, 10)


def test_scores_are_generated_when_the_backend_tells_no_likelihoods(pool, matchings, scripted):
    pool.execute("UPDATE task SET metric = 'token_f1'")
    pool.execute("UPDATE task_version SET metric = 'token_f1'")
    for number in range(30):
        pool.add_version(f"w{number}", f"worse-{number}")
    id_ = matchings.start(task_ids=["sort"], strategy="default")
    matchings.matcher(scripted({"digest-a": 4}, tells_likelihoods=False)).drain()
    assert matchings.get(id_).state == "SUCCEEDED"
    assert matchings.scores()["sort", "a", 1] == (1.0, 4)


def test_index_shows_a_task_measured_only_when_its_matching_is_done(pool, matchings, scripted, index_worker):
    matchings.start()
    pool.touch()
    evaluator = scripted({"digest-a": 4, "": 1})
    seen = []

    def look() -> None:
        index_worker.indexer.drain()
        seen.append([len(task.affinities) for task in index_worker.pool().tasks])

    evaluator.before = look
    matchings.matcher(evaluator, matching_batch=4).drain()
    assert seen == [[0, 0], [0, 0], [0, 0], [3, 0], [3, 0], [3, 0]]
    index_worker.indexer.drain()
    tasks = index_worker.pool().tasks
    assert [affinity.adapter_id for affinity in tasks[1].affinities] == ["a", "base", "b"]


def test_routing_uses_shrunk_scores_when_a_task_is_measured(pool, matchings, index_worker):
    pool.measure("sort", "base", 0, 0.5)
    pool.measure("sort", "a", 1, 0.9, shrunk_score=0.4)
    pool.measure("sort", "b", 1, 0.6, shrunk_score=0.6)
    index_worker.indexer.drain()
    (_, task) = index_worker.pool().tasks
    assert [(each.adapter_id, each.score) for each in task.affinities] == [
        ("b", 0.6),
        ("base", 0.5),
        ("a", 0.4),
    ]


def test_a_new_version_stays_unrouted_when_it_is_not_measured_yet(pool, matchings, scripted, index_worker):
    matchings.start()
    matchings.matcher(scripted({"digest-a": 4})).drain()
    pool.add_version("a", "digest-a2a2")
    with Session(pool.engine) as session:
        arms = read_arms(session, pool.tenant, "main")
    assert [(arm.adapter_id, arm.version) for arm in arms] == [("a", 2), ("b", 1), ("base", 0)]

    def routed() -> list[int]:
        index_worker.indexer.drain()
        return [
            each.version for each in index_worker.pool().adapters if each.adapter_id == "a" and each.routable
        ]

    assert routed() == [1]
    evaluator = scripted({"digest-a2a2": 4})
    matchings.matcher(evaluator).drain()
    assert {digest for digest, _ in evaluator.cells} == {"digest-a2a2"}
    assert routed() == [2]


def test_no_statement_is_added_when_a_pool_has_more_adapters(pool, matchings, scripted):
    def statements() -> int:
        sent: list[str] = []

        def note(connection, cursor, statement, *_) -> None:
            sent.append(statement)

        matchings.start(task_ids=["sort"], remeasure=True)
        event.listen(pool.engine, "before_cursor_execute", note)
        matchings.matcher(scripted(), matching_batch=1024).drain()
        event.remove(pool.engine, "before_cursor_execute", note)
        return len(sent)

    few = statements()
    for number in range(100):
        pool.add_version(f"more-{number}", f"digest-{number}")
    assert statements() == few
    assert len(matchings.affinities()) == 103


def test_no_deadlock_when_tasks_become_matched_while_the_registry_writes(pool):
    for task in ("french", "sort"):
        for arm, version in ARMS:
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
