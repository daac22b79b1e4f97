"""kill -9 of any process while 200 tasks are registered: all of them arrive, and none twice."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults_ledger import insist
from lorauter import Client
from lorauter.errors import AlreadyExists
from lorauter.index import QdrantIndex
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.suite import Suite
from tests.budgets import tries

TASKS = tries(198, 90)
VICTIMS = (
    *("registry", "worker-index", "postgres", "valkey", "index"),
    *("worker-matching", "router", "gateway", "engine"),
)


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    """A suite of its own, in which no backend is registered: nothing is matched, everything is embedded."""
    with Suite(tmp_path) as started:
        yield started


def register(client: Client, number: int) -> None:
    """Registers a task with two examples, as a caller that retries does."""
    task, first, second = f"task-{number:03}", str(uuid.uuid4()), str(uuid.uuid4())
    examples = [(f"question {number} of {kind}", "answer") for kind in ("this kind", "that kind")]
    insist(lambda: client.registry.create_task(id=task, pool="kills", metric="exact_match", request_id=first))
    insist(lambda: client.registry.put_validation_set(task, examples, request_id=second))


def kill(suite: Suite, name: str) -> None:
    """Kills a process of the suite with SIGKILL."""
    os.kill(suite.pids()[name], signal.SIGKILL)


@pytest.mark.timeout(300)
def test_all_tasks_arrive_once_when_every_process_is_killed(suite: Suite) -> None:
    found = suite.addresses
    with found.client() as client:
        client = client.with_timeout(10)
        insist(
            lambda: client.registry.create_pool(id="kills", base_model="none", request_id=str(uuid.uuid4()))
        )
        every = TASKS // len(VICTIMS)
        for number in range(TASKS):
            if number % every == every // 2:
                kill(suite, VICTIMS[number // every])
            register(client, number)
        deadline = time.monotonic() + 180
        while True:
            states = Counter(task.state for task in client.registry.list_tasks(pool="kills"))
            if states == {pb.TASK_STATE_EMBEDDED: TASKS}:
                break
            assert time.monotonic() < deadline, states
            time.sleep(0.2)
        with pytest.raises(AlreadyExists):
            client.registry.create_task(id="task-000", pool="kills", metric="exact_match")
        newest = client.registry.get_generation().generation
        decision = insist(
            lambda: client.route("question 7 of this kind", pool="kills", min_generation=newest)
        )
        assert decision.tasks
    snapshot = QdrantIndex(found.index_http).read("default")
    ids = [task.task_id for task in snapshot.pools["kills"].tasks]
    assert sorted(ids) == [f"task-{number:03}" for number in range(TASKS)]
