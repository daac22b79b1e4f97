"""Does matching work as the outbox owes it, in slices that a kill costs at most one batch."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from sqlmodel import Session

from lorauter.errors import LorauterError
from lorauter.store.tables import Operation
from lorauter.telemetry import get_logger
from lorauter_worker.service import outbox, progress
from lorauter_worker.service.coordinating import Coordinator
from lorauter_worker.service.lease import Lease, LeaseLost, held
from lorauter_worker.service.parts import Means, Part
from lorauter_worker.service.state import lock_generation
from lorauter_worker.service.traced import working

_log = get_logger(__name__)

FINAL = frozenset({"BACKEND_REFUSES_ADAPTERS", "UNKNOWN_STRATEGY"})
"""Errors that no second try makes good."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """Works on operations and their parts. One at a time in a process; any number of processes."""

    means: Means
    owner: str

    def drain(self) -> None:
        """Works on what is due, in turn, for a slice; what is left is done at the next wake-up."""
        settings = self.means.settings
        deadline = time.monotonic() + settings.slice_seconds
        while True:
            claim = outbox.claim(self.means.engine, "matching", self.owner, settings.lease_seconds)
            if claim is None:
                return
            self._handle(claim, deadline)
            if time.monotonic() >= deadline:
                break
        self.means.wakeups.wake("matching")

    def _handle(self, claim: outbox.Claim, deadline: float) -> None:
        settings = self.means.settings
        seconds = settings.lease_seconds, settings.heartbeat_seconds
        with held(self.means.engine, claim, *seconds) as lease, working("match", claim):
            try:
                self._work(lease, deadline)
            except LeaseLost:
                _log.warning("worker.matching.lease_lost", key=claim.key)
            except Exception as error:
                self._fail(lease, error)

    def _work(self, lease: Lease, deadline: float) -> None:
        operation = self._operation(lease.claim)
        task_id = lease.claim.key.partition("/")[2]
        if operation is None or operation.end_time is not None:
            with self.means.engine.begin() as connection:
                outbox.finish(connection, lease.claim)
        elif task_id:
            Part(self.means, lease, operation, task_id).work(deadline)
        else:
            Coordinator(self.means.engine, self.means.wakeups, self.means.settings).work(lease, operation)

    def _operation(self, claim: outbox.Claim) -> Operation | None:
        with Session(self.means.engine) as session:
            return session.get(Operation, (claim.tenant, claim.key.partition("/")[0]))

    def _fail(self, lease: Lease, error: Exception) -> None:
        """Tries again later, or ends the operation after too many failures in a row."""
        claim = lease.claim
        outbox.fail(self.means.engine, claim, error)
        final = isinstance(error, LorauterError) and error.reason in FINAL
        operation = self._operation(claim)
        if operation is None or not (final or claim.attempts >= self.means.settings.max_attempts):
            return
        detail = f"{error.reason}: {error.message}" if isinstance(error, LorauterError) else "internal error"
        with suppress(LeaseLost), self.means.engine.begin() as connection:
            lock_generation(connection, operation.tenant)
            lease.fence(connection)
            progress.end(connection, operation, "FAILED", "given up", detail)
