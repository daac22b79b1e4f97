"""Matching on the real engine with adapters of the demo pool, by real worker processes where it matters."""

import os
import signal

import pytest
import redis

from lorauter_worker.adapters.evaluators import make_evaluator
from lorauter_worker.service.automatching import start_matchings

TASKS = ("reverse-word", "sort-word", "dash-word")
ADAPTERS = ("reverse-word-a", "sort-word-a", "dash-word-a")


@pytest.fixture
def demo(registry, demo_engine):
    """Three tasks of the demo pool, of 20 examples, with their adapters."""
    registry.add_pool()
    registry.add_backend(demo_engine.url)
    for task in TASKS:
        registry.put_task(task, demo_engine.examples(task, 20))
    for adapter in ADAPTERS:
        registry.add_version(adapter, demo_engine.adapter(adapter))
    return registry


def finished(matchings, id_):
    return lambda: matchings.get(id_).end_time is not None


def test_each_task_prefers_its_own_adapter_when_the_demo_pool_is_matched(
    demo, matchings, demo_engine, index_worker
):
    demo.add_version("absent", "sha256:" + "0" * 64)
    demo.add_version("idle", demo_engine.scaled("sort-word-a", 0.0))
    demo.add_version("overflowing", demo_engine.scaled("sort-word-a", 1e30))
    index_worker.indexer.drain()
    assert index_worker.wakeups.names == ["matching"]
    assert start_matchings(demo.engine, demo.tenant) == 0

    matchings.matcher(make_evaluator, matching_strategy="default").drain()
    (operation,) = demo.operations()
    assert (operation.state, operation.error) == ("SUCCEEDED", "")
    assert operation.progress["quarantined_count"] == 3
    faults = {adapter: reason.partition(":")[0] for adapter, reason in matchings.quarantined().items()}
    assert faults == {"absent": "DOES_NOT_LOAD", "idle": "NO_EFFECT", "overflowing": "NOT_FINITE"}
    index_worker.indexer.drain()
    assert demo.outbox() == []
    for task in index_worker.pool().tasks:
        best, *others = task.affinities
        assert best.adapter_id == f"{task.task_id}-a"
        assert best.score > 0.5
        assert {a.adapter_id for a in others} == {"base", *ADAPTERS} - {best.adapter_id}
        assert demo.task_state(task.task_id) == "MATCHED"
    rows = matchings.affinities()
    assert rows["sort-word", "sort-word-a", 1].eligible
    assert not rows["sort-word", "base", 0].eligible


def test_no_evaluation_counts_twice_when_a_worker_is_killed_in_the_middle(
    demo, matchings, demo_engine, run_worker
):
    """240 evaluations in batches of 10, the worker killed twice in the middle."""
    before = demo_engine.scored()
    id_ = matchings.start(strategy="exhaustive")
    demo.execute("DELETE FROM outbox WHERE topic = 'index'")
    environment = {"LORAUTER_MATCHING_BATCH": "10", "LORAUTER_MATCHING_RATE": "100"}
    kills = 0
    for done in (30, 130):
        with run_worker("matching", **environment) as worker:
            demo.eventually(lambda done=done: matchings.get(id_).done >= done)
            os.kill(worker.pid, signal.SIGKILL)
            kills += 1
    assert matchings.get(id_).end_time is None
    with run_worker("matching", **environment):
        demo.eventually(finished(matchings, id_))
    done = matchings.get(id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", 240, 240)
    assert 240 <= demo_engine.scored() - before <= 240 + 10 * kills
    assert {row.count for row in matchings.affinities().values()} == {20}
    assert sum(part.done for part in matchings.parts(id_)) == 240


def test_no_evaluation_counts_twice_when_broker_and_database_drop_everything_in_the_middle(
    demo, matchings, demo_engine, run_worker, settings
):
    """The broker forgets all messages, PostgreSQL ends all connections, and the child is killed."""
    id_ = matchings.start(strategy="exhaustive")
    demo.execute("DELETE FROM outbox WHERE topic = 'index'")
    environment = {"LORAUTER_MATCHING_BATCH": "10", "LORAUTER_MATCHING_RATE": "100"}
    with run_worker("matching", **environment) as worker:
        demo.eventually(lambda: matchings.get(id_).done >= 30)
        with redis.Redis.from_url(str(settings.redis_url)) as broker:
            broker.flushall()
        demo.eventually(lambda: matchings.get(id_).done >= 60)
        demo.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        demo.eventually(lambda: matchings.get(id_).done >= 120)
        for child in worker.children():
            os.kill(child, signal.SIGKILL)
        demo.eventually(finished(matchings, id_))
    done = matchings.get(id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", 240, 240)
    assert {row.count for row in matchings.affinities().values()} == {20}
    assert sum(part.done for part in matchings.parts(id_)) == 240


def test_no_evaluation_is_done_twice_when_several_processes_share_a_matching(
    demo, matchings, demo_engine, run_worker
):
    before = demo_engine.scored()
    id_ = matchings.start(strategy="exhaustive")
    demo.execute("DELETE FROM outbox WHERE topic = 'index'")
    with run_worker("matching", LORAUTER_CONCURRENCY="2", LORAUTER_MATCHING_BATCH="10") as worker:
        owners: set[str] = set()

        def is_over() -> bool:
            owners.update(row.lease_owner for row in matchings.rows() if row.lease_owner and "/" in row.key)
            return finished(matchings, id_)()

        demo.eventually(is_over)
        assert len(worker.children()) >= 2
    assert len(owners) == 2
    assert demo_engine.scored() - before == matchings.get(id_).done == 240


def test_budget_is_kept_at_the_engine_when_several_processes_share_it(
    demo, matchings, demo_engine, run_worker
):
    before = demo_engine.scored()
    id_ = matchings.start(strategy="exhaustive", max_evaluations=77)
    demo.execute("DELETE FROM outbox WHERE topic = 'index'")
    with run_worker("matching", LORAUTER_CONCURRENCY="2", LORAUTER_MATCHING_BATCH="10"):
        demo.eventually(finished(matchings, id_))
    stopped = matchings.get(id_)
    assert (stopped.state, stopped.done) == ("CANCELLED", 77)
    assert stopped.message.startswith("stopped by its budget of 77 evaluations: ")
    assert demo_engine.scored() - before == 77
