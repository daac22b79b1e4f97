"""One whole suite with the demo pool, matched, for all end-to-end tests of a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.traces_receiver import TraceReceiver
from lorauter import Client
from lorauter_suite.seeding import seed
from lorauter_suite.suite import Addresses, Suite
from lorauter_suite.walkthrough import follow_matching
from tests.topology.compose import DEVELOPMENT, read_variables
from tests.topology.processes import Topology

TOPOLOGY = os.environ.get("E2E_TOPOLOGY", "")
"""Set to `compose`, the services are the processes of docker-compose.yml, and only tests of them run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out tests that start an embedded suite of their own where another topology is asked for."""
    if TOPOLOGY:
        names = {item: getattr(item, "fixturenames", ()) for item in items}
        items[:] = [item for item in items if "addresses" in names[item] and "embedded" not in names[item]]


@contextmanager
def whole(folder: Path) -> Iterator[Addresses]:
    """Starts all of lorauter, embedded or as TOPOLOGY says."""
    if TOPOLOGY:
        variables = read_variables(DEVELOPMENT)
        with pytest.MonkeyPatch.context() as patch, Topology(folder, variables).started() as found:
            patch.setenv("LORAUTER_BACKEND_KEY", variables["LORAUTER_BACKEND_KEY"])
            yield found
    else:
        with Suite(folder) as suite:
            yield suite.addresses


_OBSERVING = {"OTEL_TRACES_SAMPLER": "parentbased_always_off", "LORAUTER_LOG_REQUESTS": "true"}


@dataclass(frozen=True)
class Observed:
    """What can be seen of the suite of this session: its folder, and the traces of those who ask for them."""

    folder: Path
    receiver: TraceReceiver


@pytest.fixture(scope="session")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """The folder of the suite of this session, and a receiver that all its services send their spans to."""
    with TraceReceiver() as receiver, pytest.MonkeyPatch.context() as patch:
        for name, value in {**receiver.environment, **_OBSERVING}.items():
            patch.setenv(name, value)
        yield Observed(tmp_path_factory.mktemp("suite"), receiver)


@pytest.fixture(scope="session")
def addresses(observed: Observed) -> Iterator[Addresses]:
    """Where the suite of this session is; its demo pool is registered and matched."""
    with whole(observed.folder) as found:
        with connect(found) as client:
            seed(client, found.engine_http, lambda _: None)
            for _ in follow_matching(client):
                pass
        yield found


@pytest.fixture
def embedded(addresses: Addresses, observed: Observed) -> Observed:
    """The same, for tests that look into the folder of an embedded suite."""
    return observed


def engine_key() -> str | None:
    """Returns the key that the suite's engine asks for, None where it asks for none."""
    return os.environ.get("LORAUTER_BACKEND_KEY")


def engine_headers() -> dict[str, str]:
    """Returns what a request to the engine needs."""
    key = engine_key()
    return {"authorization": f"Bearer {key}"} if key else {}


@pytest.fixture
def client(addresses: Addresses) -> Iterator[Client]:
    """A client of the suite's gRPC services."""
    with connect(addresses) as connected:
        yield connected


def connect(addresses: Addresses) -> Client:
    """Returns a client of a suite."""
    return addresses.client()


class Command:
    """Runs `lorauter` against a suite."""

    program = (sys.executable, "-c", "from lorauter_suite.cli import main; main()")

    def __init__(self, addresses: Addresses) -> None:
        self.environment = {
            **os.environ,
            "LORAUTER_REGISTRY_ADDRESS": addresses.registry_grpc,
            "LORAUTER_ROUTER_ADDRESS": addresses.router_grpc,
            "LORAUTER_GATEWAY_ADDRESS": addresses.gateway_grpc,
            "LORAUTER_REGISTRY_URL": addresses.registry_http,
            "LORAUTER_API_KEY": addresses.api_key,
        }

    def __call__(
        self, *arguments: str, status: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Returns what a command printed; fails unless it ends with ``status``."""
        done = subprocess.run(
            [*self.program, *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def lorauter(addresses: Addresses) -> Command:
    """The command, against the suite of this session."""
    return Command(addresses)
