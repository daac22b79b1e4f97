"""Started one by one with nothing but the variables of docker-compose.yml, the services do their job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.faults_ledger import insist
from lorauter.gateway.v1 import gateway_pb2
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_DIRECTORY, POOL_ID, demo_tasks, seed_adapter, seed_task
from lorauter_suite.suite import Addresses
from lorauter_suite.walkthrough import follow_matching
from tests.topology.compose import DEVELOPMENT, read_variables
from tests.topology.processes import DAEMONS, Topology

TASK = "reverse-word"


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Topology, Addresses]]:
    """All processes, with one task and two adapters of the demo pool registered."""
    topology = Topology(tmp_path_factory.mktemp("topology"), read_variables(DEVELOPMENT))
    with topology.started() as found:
        with found.client() as client:
            client.registry.create_pool(
                id=POOL_ID, base_model="lorauter/demo-base", base_path=str(POOL_DIRECTORY / "base")
            )
            client.registry.register_backend(
                id="engine", pool=POOL_ID, kind=pb.BackendKind.BACKEND_KIND_ENGINE, url=found.engine_http
            )
            for name in (f"{TASK}-a", "upper-word-a"):
                seed_adapter(client, POOL_DIRECTORY / "adapters" / name)
            seed_task(client, next(task for task in demo_tasks() if task.id == TASK))
            for _ in follow_matching(client):
                pass
        yield topology, found


@pytest.mark.timeout(300)
def test_query_is_answered_by_the_adapter_that_measured_best(topology: tuple[Topology, Addresses]) -> None:
    _, found = topology
    with found.client() as client:
        newest = client.registry.get_generation().generation
        insist(lambda: client.route("Write the word backwards: planet", min_generation=newest))
        answer = client.generate("Write the word backwards: planet")
    assert answer.text.strip() == "tenalp"
    assert [each.adapter_id for each in answer.served.adapters] == [f"{TASK}-a"]
    assert answer.served.composition != gateway_pb2.COMPOSITION_BASE


def test_caller_without_a_key_is_refused_everywhere(topology: tuple[Topology, Addresses]) -> None:
    _, found = topology
    body = {"model": "auto", "prompt": "Write the word backwards: planet"}
    assert httpx.post(f"{found.gateway_http}/v1/completions", json=body).status_code == 401
    assert httpx.get(f"{found.registry_http}/v1/tasks").status_code == 401
    assert httpx.post(f"{found.engine_http}/generate", json={"inputs": "x"}).status_code == 401


def test_process_writes_where_the_container_may_and_nowhere_else(
    topology: tuple[Topology, Addresses],
) -> None:
    here, _ = topology
    for name in DAEMONS:
        environment = here.environment(name)
        assert environment["HOME"] == environment["TMPDIR"] == str(here.folder / "tmp" / name)
    written = {path.name for path in here.folder.iterdir()}
    assert written == {"adapters", "database", "incoming", "logs", "tmp", "valkey"}


def test_no_process_logs_a_secret(topology: tuple[Topology, Addresses]) -> None:
    here, _ = topology
    logs = "".join(path.read_text(errors="replace") for path in Path(here.folder / "logs").iterdir())
    keys = [value for name, value in here.variables.items() if name.endswith("_KEY")]
    assert "known-to-everybody" in "".join(keys)
    assert not [key for key in keys if key in logs]
