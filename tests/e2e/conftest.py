"""One whole suite with the demo pool, matched, for all end-to-end tests of a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lorauter import Client
from lorauter_suite.seeding import seed
from lorauter_suite.suite import Addresses, Suite
from lorauter_suite.walkthrough import follow_matching


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Where the suite of this session is; its demo pool is registered and matched."""
    with ExitStack() as stack:
        suite = stack.enter_context(Suite(tmp_path_factory.mktemp("suite")))
        found = suite.addresses
        with connect(found) as client:
            seed(client, found.engine_http, lambda _: None)
            for _ in follow_matching(client):
                pass
        yield found


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
