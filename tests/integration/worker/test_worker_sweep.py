"""The sweep finds work and a lost marker without any message."""

from dataclasses import replace

import pytest
import redis
from celery import Celery

from lorauter.errors import Unavailable
from lorauter.index import QdrantIndex
from lorauter_suite.embedded.index import index_process, index_url
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running
from lorauter_worker.adapters.celery_wakeups import CeleryWakeups
from lorauter_worker.service import outbox
from lorauter_worker.service.sweep import Sweep
from lorauter_worker.tasks.app import create_app


@pytest.fixture
def sweep(registry, index_worker, settings):
    waiting = {"index": 0, "matching": 0}
    sweep = Sweep(registry.engine, index_worker.index, index_worker.wakeups, waiting.__getitem__, settings)
    return sweep, waiting, index_worker.wakeups.names


def test_work_is_woken_once_when_it_is_due(registry, index_worker, sweep):
    it, waiting, names = sweep
    it.once()
    assert names == ["reconcile"]
    names.clear()
    registry.add_pool()
    it.once()
    assert names == ["index"]
    waiting["index"] = 1
    it.once()
    assert names == ["index"]
    waiting["index"] = 0
    index_worker.indexer.drain()
    names.clear()
    it.once()
    assert names == []


def test_a_worker_is_woken_for_each_part_when_several_are_due(registry, sweep):
    it, waiting, names = sweep
    with registry.engine.begin() as connection:
        outbox.owe(connection, registry.tenant, "matching", ["op/a", "op/b", "op/c"])
    waiting["matching"] = 1
    it.once()
    assert names.count("matching") == 2
    outbox.claim(registry.engine, "matching", "test", 60)
    names.clear()
    it.once()
    assert names.count("matching") == 1


def test_reconcile_is_woken_when_the_marker_is_lost(registry, index_worker, sweep):
    it, _, names = sweep
    registry.add_pool()
    index_worker.indexer.drain()
    it.once()
    names.clear()
    index_worker.index.clear(registry.tenant)
    it.once()
    assert names == ["reconcile"]


def test_sweep_goes_on_when_the_index_is_away(registry, index_worker, sweep, monkeypatch):
    it, _, names = sweep
    registry.add_pool()
    index_worker.indexer.drain()
    it.once()
    names.clear()

    def away(tenant):
        raise Unavailable("INDEX_UNAVAILABLE", "away")

    monkeypatch.setattr(index_worker.index, "published", away)
    registry.touch()
    it.once()
    assert names == ["index"]
    assert it.lacking() == ""


def test_what_failed_is_tried_at_once_when_the_index_is_back(registry, make_index_worker, settings):
    worker, port = make_index_worker(), free_port()
    index = QdrantIndex(index_url(port), timeout_seconds=1)
    indexer = replace(worker.indexer, index=index)
    sweep = Sweep(registry.engine, index, worker.wakeups, lambda topic: 0, settings)
    registry.add_pool()
    with running(index_process(port)):
        indexer.drain()
        sweep.once()
    newest = registry.touch()
    registry.execute("UPDATE outbox SET attempts = 20")
    indexer.drain()
    worker.wakeups.names.clear()
    sweep.once()
    assert worker.wakeups.names == []
    with running(index_process(port)):
        sweep.once()
        assert worker.wakeups.names[0] == "index"
        indexer.drain()
        assert index.published(registry.tenant)[0] == newest


def test_a_wakeup_waits_in_its_queue_when_nobody_takes_it(redis_url):
    wakeups = CeleryWakeups(create_app(redis_url), redis_url)
    wakeups.wake("index")
    wakeups.wake("reconcile")
    wakeups.wake("matching")
    assert (wakeups.waiting("index"), wakeups.waiting("matching")) == (2, 1)
    with redis.Redis.from_url(redis_url) as broker:
        broker.flushall()
    wakeups.wake("index")
    assert (wakeups.waiting("index"), wakeups.waiting("matching")) == (1, 0)


def test_a_wakeup_of_another_service_arrives_when_it_knows_only_the_names(redis_url):
    Celery("lorauter", broker=redis_url, set_as_current=False).send_task(
        "lorauter.index.drain", queue="index"
    )
    assert CeleryWakeups(create_app(redis_url), redis_url).waiting("index") == 1


def test_wakeups_are_dropped_in_silence_when_the_broker_is_away():
    url = "redis://127.0.0.1:9/0"
    wakeups = CeleryWakeups(create_app(url), url)
    wakeups.wake("index")
    assert wakeups.waiting("index") == 1
