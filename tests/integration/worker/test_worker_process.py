"""The worker's real processes over Valkey: Celery, its children, the sweep and recovery."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import redis

from lorauter.index import QdrantIndex


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def is_published(registry, generation):
    published = "SELECT COALESCE(published, 0) FROM generation WHERE tenant = :tenant"
    return lambda: (
        registry.scalar(published) >= generation
        and not [row for row in registry.outbox() if row.topic == "index"]
    )


def test_every_change_reaches_the_index_when_anything_dies_or_forgets(registry, settings, run_worker):
    registry.add_pool()
    with run_worker("index") as running:
        registry.eventually(is_published(registry, registry.put_task("one", registry.questions("one"))))
        assert running.get("/healthz") == "ok"
        assert running.get("/readyz") == "ok"
        assert running.metric('lorauter_projections_total{result="published"}') >= 1
        assert running.metric("lorauter_index_repairs_total") == 0

        # the only child is killed: Celery forks another
        (child,) = running.children()
        os.kill(child, signal.SIGKILL)
        registry.eventually(is_published(registry, registry.put_task("two", registry.questions("two"))))

        # a worker elsewhere died while it held the work
        generation = registry.put_task("three", registry.questions("three"))
        registry.execute("UPDATE outbox SET lease_until = now() + interval '2 s', lease_owner = 'dead'")
        registry.eventually(is_published(registry, generation))

        # the broker loses everything
        with redis.Redis.from_url(str(settings.redis_url)) as broker:
            broker.flushall()
        registry.eventually(is_published(registry, registry.put_task("four", registry.questions("four"))))

        # the index loses everything
        index = QdrantIndex(str(settings.qdrant_url))
        before = index.read(registry.tenant)
        index.clear(registry.tenant)
        registry.eventually(lambda: index.published(registry.tenant) is not None)
        assert index.read(registry.tenant).digest == before.digest
        registry.eventually(lambda: running.metric("lorauter_index_rebuilds_total") == 1)
        assert running.metric("lorauter_index_repairs_total") == 0
        assert registry.scalar("SELECT count(*) FROM task WHERE state = 'EMBEDDED'") == 4

        # the worker itself is killed with work in its hands
        for number in range(20):
            generation = registry.put_task(f"task-{number}", registry.questions(f"topic {number}", 8))
        children = running.children()
        running.process.kill()
        registry.eventually(lambda: not any(map(is_alive, children)))
    with run_worker("index"):
        registry.eventually(is_published(registry, generation))
    assert len(index.read(registry.tenant).pools["main"].tasks) == 24


def test_worker_ends_cleanly_when_asked_to(registry, settings, run_worker):
    with run_worker("matching") as running:
        children = running.children()
        for pid in (running.pid, *children):
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(15)
    registry.eventually(lambda: not any(map(is_alive, children)))


def test_worker_says_which_setting_is_wrong_when_started():
    environment = {**os.environ, "DATABASE_URL": "mysql://x", "REDIS_URL": "redis://x"}
    environment.pop("QDRANT_URL", None)
    done = subprocess.run(
        [sys.executable, "-m", "lorauter_worker.main"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "DATABASE_URL" in done.stderr
    assert "QDRANT_URL" in done.stderr
    assert "Traceback" not in done.stderr
