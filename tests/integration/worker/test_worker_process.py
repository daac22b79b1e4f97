"""The worker's real processes over Valkey: Celery, its children, the sweep and recovery."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from lorauter.index import QdrantIndex


class Process:
    """A running worker."""

    def __init__(self, process: subprocess.Popen, http_port: int) -> None:
        self.process = process
        self.pid = process.pid
        self.http_port = http_port

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children()


@contextmanager
def worker(settings, log, queues: str, **environment: str):
    environment = {
        "DATABASE_URL": str(settings.database_url),
        "REDIS_URL": str(settings.redis_url),
        "QDRANT_URL": str(settings.qdrant_url),
        "LORAUTER_QUEUES": queues,
        "LORAUTER_SWEEP_SECONDS": "0.3",
        "LORAUTER_LEASE_SECONDS": "2",
        "LORAUTER_HEARTBEAT_SECONDS": "0.5",
        "LORAUTER_DRAIN_SECONDS": "1",
        **environment,
    }
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "lorauter_worker.main"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Process(process, json.loads(line)["http_port"])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def log(tmp_path):
    return tmp_path / "worker.log"


def is_published(registry, generation):
    published = "SELECT COALESCE(published, 0) FROM generation WHERE tenant = :tenant"
    return lambda: (
        registry.scalar(published) >= generation
        and not [row for row in registry.outbox() if row.topic == "index"]
    )


def test_changes_reach_the_index_when_processes_die_and_the_broker_forgets(registry, settings, log):
    with worker(settings, log, "index") as running:
        registry.add_pool()
        registry.eventually(is_published(registry, registry.put_task("one", registry.questions("one"))))
        assert running.get("/healthz") == "ok"
        assert running.get("/readyz") == "ok"
        assert running.metric('lorauter_projections_total{result="published"}') >= 1
        assert running.metric("lorauter_index_repairs_total") == 0

        # the only child is killed: Celery forks another
        (child,) = running.children()
        child.send_signal(signal.SIGKILL)
        registry.eventually(is_published(registry, registry.put_task("two", registry.questions("two"))))

        # a child dies while it holds the work
        claimed = "UPDATE outbox SET lease_until = now() + interval '2 s', lease_owner = 'dead'"
        generation = registry.put_task("three", registry.questions("three"))
        registry.execute(claimed)
        registry.eventually(is_published(registry, generation))

        # the broker loses everything
        with redis.Redis.from_url(str(settings.redis_url)) as broker:
            broker.flushall()
        registry.eventually(is_published(registry, registry.put_task("four", registry.questions("four"))))

        # the index loses everything
        index = QdrantIndex(str(settings.qdrant_url))
        before = index.read(registry.tenant)
        index.clear(registry.tenant)
        registry.eventually(lambda: index.published(registry.tenant) is not None, seconds=10)
        assert index.read(registry.tenant).digest == before.digest
        assert len(before.pools["main"].tasks) == 4
        registry.eventually(lambda: running.metric("lorauter_index_repairs_total") == 1)
        assert registry.scalar("SELECT count(*) FROM task WHERE state = 'EMBEDDED'") == 4


def test_work_of_a_killed_worker_is_done_when_another_one_starts(registry, settings, log):
    with worker(settings, log, "index") as first:
        registry.add_pool()
        generation = 0
        for number in range(20):
            generation = registry.put_task(f"task-{number}", registry.questions(f"topic {number}", 8))
        children = first.children()
        first.process.kill()
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    with worker(settings, log, "index"):
        registry.eventually(is_published(registry, generation))
    assert len(QdrantIndex(str(settings.qdrant_url)).read(registry.tenant).pools["main"].tasks) == 20


def test_worker_ends_cleanly_when_asked_to(registry, settings, log):
    with worker(settings, log, "matching") as running:
        children = running.children()
        for pid in (running.pid, *(child.pid for child in children)):
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(15)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_worker_says_which_setting_is_wrong_when_started(settings, log):
    environment = {**os.environ, "DATABASE_URL": "mysql://x", "REDIS_URL": "redis://x"}
    environment.pop("QDRANT_URL", None)
    done = subprocess.run(
        [sys.executable, "-m", "lorauter_worker.main"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "DATABASE_URL" in done.stderr
    assert "QDRANT_URL" in done.stderr
    assert "Traceback" not in done.stderr
