"""Kills processes of a suite under load: nothing that was acknowledged may be lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine, text

from benchmarks.faults_changes import POOL, Caller, Crowd, Files, create_pools
from benchmarks.faults_ledger import TENANT, Judge, Ledger, Verdict
from lorauter import Client
from lorauter.encoder import Encoder
from lorauter.errors import LorauterError
from lorauter.identifiers import decode_generation
from lorauter.store import create_engine
from lorauter_suite.suite import Suite, SuiteOptions

VICTIMS = ("registry", "worker-index", "worker-child", "index")
"""A worker is killed as a whole, or only its child that does the work."""

CALLERS = 4
PAUSE_SECONDS = 0.11
"""Between two changes of a caller: all of them make some 35 a second."""

RECOVERY_SECONDS = 120.0
"""After so long without recovery a kill counts as one that was never recovered from."""

SERVICES = ("router", "registry", "worker-index")
REPAIRED = '"worker.index.repaired"'

_FORGET = text(
    "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "DELETE FROM outbox WHERE id = NEW.id AND topic = 'index'; RETURN NULL; END $$"
)
_FORGETTING = text("CREATE TRIGGER forgetting AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION forget()")


@dataclass(frozen=True)
class KillRun:
    """A run of kills under load. ``recovery_s``: from each kill until a change made after it is routed by."""

    changes: int
    kills: list[str]
    verdict: Verdict
    repaired: int
    recovery_s: list[float]
    seconds: float


@dataclass
class Site:
    """A running suite with all that looks into it."""

    suite: Suite
    client: Client
    engine: Engine
    judge: Judge
    files: Files
    ledger: Ledger = field(default_factory=Ledger)

    def logged(self, name: str, words: str) -> int:
        """Counts the lines of a process's logs, of all its lives, that hold these words."""
        logs = (self.suite.data_dir / "logs").glob(f"{name}.log*")
        return sum(path.read_text(encoding="utf-8", errors="replace").count(words) for path in logs)


@contextmanager
def site(
    folder: Path, encoder: Encoder, services: tuple[str, ...] = SERVICES, **environment: str
) -> Iterator[Site]:
    """Runs a suite in a new folder, with a pool to change; ``environment`` are settings of its services."""
    options = SuiteOptions(services=services, environment=environment)
    with Suite(folder, options) as suite:
        found = suite.addresses
        engine = create_engine(found.database_url)
        with found.client(timeout_seconds=10) as client:
            judge = Judge(client, engine, found.index_http, encoder, POOL)
            made = Site(suite, client, engine, judge, Files(Path(found.incoming)))
            create_pools(client, made.files, made.ledger)
            try:
                yield made
            finally:
                engine.dispose()


def run_kills(
    folder: Path, encoder: Encoder, seed: int, changes: int, kills: int, say: Callable[[str], None]
) -> KillRun:
    """Makes at least ``changes`` changes, kills processes meanwhile, and judges what is left."""
    began = time.monotonic()
    rng = random.Random(f"{seed}/kills")  # noqa: S311
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
    rng.shuffle(victims)
    recovery: list[float] = []
    with site(folder, encoder) as here:
        crowd = _crowd(here, seed)
        for number, victim in enumerate(victims):
            _await_changes(here, crowd, int(changes * (number + rng.random()) / kills))
            recovery.append(_kill_and_recover(here, victim))
            say(f"kill {number + 1} of {kills}, {victim}: recovered in {recovery[-1]:.1f} s")
        _await_changes(here, crowd, changes)
        crowd.end()
        verdict = here.judge.judge(here.ledger)
        repaired = here.logged("worker-index", REPAIRED)
        return KillRun(len(here.ledger), victims, verdict, repaired, recovery, time.monotonic() - began)


def run_control(folder: Path, encoder: Encoder, seed: int, changes: int, kills: int) -> KillRun:
    """The same without an outbox: a trigger deletes its rows as the registry writes them.

    Reconciliation, which would find the loss later and count it as repaired, is put off.
    """
    began = time.monotonic()
    victims = ["registry"] * kills
    with site(folder, encoder, LORAUTER_RECONCILE_SECONDS="86400") as here:
        here.judge.settle(60)
        with here.engine.begin() as connection:
            connection.execute(_FORGET)
            connection.execute(_FORGETTING)
        crowd = _crowd(here, seed)
        for number, victim in enumerate(victims):
            _await_changes(here, crowd, changes * (number + 1) // (kills + 1))
            kill(here, victim)
        _await_changes(here, crowd, changes)
        crowd.end()
        verdict = here.judge.judge(here.ledger, seconds=20)
        return KillRun(len(here.ledger), victims, verdict, 0, [], time.monotonic() - began)


def kill(here: Site, victim: str) -> None:
    """Kills a process with SIGKILL; waits for it to be there first."""
    name = "worker-index" if victim == "worker-child" else victim
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid = here.suite.pids().get(name)
        if pid is not None and victim == "worker-child":
            pid = next(iter(children(pid)), None)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.05)
    raise RuntimeError(f"{victim} did not come back to be killed again")


def _kill_and_recover(here: Site, victim: str) -> float:
    kill(here, victim)
    killed = time.monotonic()
    while time.monotonic() < killed + RECOVERY_SECONDS:
        generation = here.ledger.since(killed)
        if generation is not None and routed_generation(here) >= generation:
            break
        time.sleep(0.05)
    return time.monotonic() - killed


def routed_generation(here: Site) -> int:
    """Returns the generation by which the router decides; 0 while it does not."""
    try:
        return decode_generation(here.client.route("which question is it", pool=POOL).generation, TENANT)
    except LorauterError:
        return 0


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started and that are still its own."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text(encoding="ascii").split()]
    return found


def _crowd(here: Site, seed: int) -> Crowd:
    callers = [Caller(f"c{n}", here.client, here.files, here.ledger, seed) for n in range(CALLERS)]
    return Crowd(callers, PAUSE_SECONDS)


def _await_changes(here: Site, crowd: Crowd, count: int) -> None:
    while len(here.ledger) < count:
        crowd.check()
        time.sleep(0.05)
