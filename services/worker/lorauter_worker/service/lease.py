"""Keeps a claim alive while its work runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from lorauter.telemetry import get_logger
from lorauter_worker.service import outbox

_log = get_logger(__name__)


class LeaseLost(Exception):
    """Somebody else holds the work now; what this worker still does must leave no trace."""


class Lease:
    """A claim whose lease a thread renews. See held()."""

    def __init__(self, engine: Engine, claim: outbox.Claim, lease_seconds: float) -> None:
        self.claim = claim
        self._engine = engine
        self._seconds = lease_seconds
        self._good_until = time.monotonic() + lease_seconds
        self._lost = False

    def check(self) -> None:
        """Raises LeaseLost if the lease was lost or could not be renewed in time."""
        if self._lost or time.monotonic() > self._good_until:
            raise LeaseLost

    def fence(self, connection: Connection) -> None:
        """Raises LeaseLost unless this claim is the newest; its rows stay so until the transaction ends."""
        self.check()
        if not outbox.still_holds(connection, self.claim):
            raise LeaseLost

    def beat(self) -> None:
        """Renews the lease once; failures of the database are left to the next beat."""
        sent = time.monotonic()
        try:
            renewed = outbox.extend(self._engine, self.claim, self._seconds)
        except SQLAlchemyError as error:
            _log.warning("worker.lease.not_renewed", error=type(error).__name__)
            return
        self._lost = not renewed
        self._good_until = sent + self._seconds


@contextmanager
def held(
    engine: Engine, claim: outbox.Claim, lease_seconds: float, heartbeat_seconds: float
) -> Iterator[Lease]:
    """Renews the claim's lease every ``heartbeat_seconds`` until the block ends."""
    lease = Lease(engine, claim, lease_seconds)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(heartbeat_seconds):
            lease.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join()
