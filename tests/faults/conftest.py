"""A registry, a worker and an index that tests may break; what is broken comes back by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from benchmarks.faults_changes import Caller
from benchmarks.faults_kills import Site, site
from benchmarks.faults_trials import SETTINGS
from lorauter.encoder import Encoder

_HELD = text("SELECT count(*) FROM outbox WHERE topic = 'index' AND lease_until > clock_timestamp()")


class Broken:
    """The site, a caller who changes its registry, and hands that break it."""

    def __init__(self, here: Site) -> None:
        self.site = here
        self.caller = Caller("test", here.client, here.files, here.ledger, seed=0)

    def pid(self, name: str) -> int:
        """The process that runs under a name now."""
        self.site.suite.await_ready(60)
        return self.site.suite.pids()[name]

    def send(self, name: str, number: signal.Signals) -> None:
        """Sends a process a signal."""
        os.kill(self.pid(name), number)

    def is_held(self) -> bool:
        """Whether a worker holds index work."""
        with self.site.engine.connect() as connection:
            return bool(connection.execute(_HELD).scalar_one())

    def assert_all_arrived(self) -> None:
        """Fails unless everything that was ever acknowledged is in registry and index, and nothing else."""
        verdict = self.site.judge.judge(self.site.ledger)
        assert not verdict.violations, verdict


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until a condition holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not hold within {seconds:g} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Iterator[Broken]:
    """A site with a lease of 1.5 s; tests leave it whole."""
    folder = tmp_path_factory.mktemp("faults")
    with site(folder, encoder, ("registry", "worker-index"), **SETTINGS) as here:
        yield Broken(here)


@pytest.fixture
def within() -> Callable[..., None]:
    """Waits for a condition: see eventually()."""
    return eventually
