"""Measures adapters and the base on tasks, in slices that a kill costs at most one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlmodel import Session

from lorauter.errors import FailedPrecondition, LorauterError
from lorauter.store import read
from lorauter.store.tables import Operation
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.config import Settings
from lorauter_worker.domain.cells import Arm, Scope, TaskPlan, next_batch, plan
from lorauter_worker.ports import Evaluator, Refused, Wakeups
from lorauter_worker.service import outbox
from lorauter_worker.service.cells import matching_arms, matching_tasks
from lorauter_worker.service.lease import Lease, LeaseLost, held
from lorauter_worker.service.questions import Batch, read_batch
from lorauter_worker.service.recording import Progress, Recorder
from lorauter_worker.service.state import PoolState, read_pool

_log = get_logger(__name__)

MakeEvaluator = Callable[[Sequence[str], float], Evaluator]
"""Makes an evaluator of backends' URLs and the seconds that a batch may take."""


@dataclass(slots=True)
class _Slice:
    """What one slice of an operation found out about adapters that the backend refuses."""

    aside: dict[Arm, str] = field(default_factory=dict)
    some_adapter_worked: bool = False


@dataclass(frozen=True, slots=True)
class Matcher:
    """Does the outbox's matching work. One at a time in a process."""

    engine: Engine
    make_evaluator: MakeEvaluator
    wakeups: Wakeups
    settings: Settings
    owner: str

    def drain(self) -> None:
        """Works on due operations in turn for a slice; what is left is done at the next wake-up."""
        deadline = time.monotonic() + self.settings.slice_seconds
        while True:
            claim = outbox.claim(self.engine, "matching", self.owner, self.settings.lease_seconds)
            if claim is None:
                return
            self._handle(claim, deadline)
            if time.monotonic() >= deadline:
                break
        self.wakeups.wake("matching")

    def _handle(self, claim: outbox.Claim, deadline: float) -> None:
        with held(self.engine, claim, self.settings.lease_seconds, self.settings.heartbeat_seconds) as lease:
            try:
                self._work(lease, deadline)
            except LeaseLost:
                _log.warning("worker.matching.lease_lost", operation=claim.key)
            except Exception as error:
                self._fail(lease, error)

    def _work(self, lease: Lease, deadline: float) -> None:
        claim = lease.claim
        with Session(self.engine) as session:
            operation = session.get(Operation, (claim.tenant, claim.key))
        if operation is None or operation.end_time is not None:
            with self.engine.begin() as connection:
                outbox.finish(connection, claim)
            return
        recorder = Recorder(self.engine, lease, operation.pool)
        state = _Slice()
        evaluator: Evaluator | None = None
        try:
            while True:
                if self._is_cancelled(claim):
                    recorder.end("CANCELLED", "cancelled; what was measured is kept")
                    return
                pool, plans = self._plan(operation, state)
                if not plans:
                    self._end(recorder, pool, state)
                    return
                if time.monotonic() >= deadline:
                    outbox.carry_on(self.engine, claim)
                    return
                evaluator = evaluator or self._evaluator(pool)
                self._measure(recorder, evaluator, plans, claim, state)
        finally:
            if evaluator is not None:
                evaluator.close()

    def _is_cancelled(self, claim: outbox.Claim) -> bool:
        with Session(self.engine) as session:
            operation = session.get(Operation, (claim.tenant, claim.key))
            return operation is None or operation.cancel_requested

    def _plan(self, operation: Operation, state: _Slice) -> tuple[PoolState | None, list[TaskPlan]]:
        """Returns what is left now: new tasks and adapters join, and what is gone or aside does not."""
        with read(self.engine) as session:
            pool = read_pool(session, operation.tenant, operation.pool)
        if pool is None:
            return None, []
        arms = [arm for arm in matching_arms(pool) if arm not in state.aside]
        tasks = matching_tasks(pool, self.settings.matching_examples)
        return pool, plan(tasks, arms, _scope(operation))

    def _evaluator(self, pool: PoolState | None) -> Evaluator:
        backends = [row for row in pool.backends if row.kind == "ENGINE"] if pool else []
        urls = [row.url for row in backends if row.state == "ACTIVE"]
        if not urls:
            raise FailedPrecondition(
                "NO_EVALUATOR", "the pool has no active backend of kind ENGINE: register one to measure on"
            )
        return self.make_evaluator(urls, self.settings.evaluation_timeout_seconds)

    def _measure(
        self,
        recorder: Recorder,
        evaluator: Evaluator,
        plans: Sequence[TaskPlan],
        claim: outbox.Claim,
        state: _Slice,
    ) -> None:
        """Measures the next cells of the first task, and writes them."""
        first = plans[0]
        arms = next_batch(first, self.settings.matching_batch)
        left = sum(plan.evaluations for plan in plans)
        message = f"measuring {first.task.task_id}: {len(first.arms)} arms left"
        recorder.begin(left, message)
        recorder.set_task_state(first.task, "MATCHING")
        batch = read_batch(self.engine, claim.tenant, first.task, arms)
        results = evaluator.evaluate(batch.questions, batch.scoring)
        telemetry.EVALUATIONS.inc(len(results))
        refused = self._sort_out(batch, results, state)
        scores = {arm: values for arm, values in batch.by_arm(results).items() if arm not in refused}
        done = sum(len(values) for values in scores.values())
        is_last = set(first.arms) <= scores.keys()
        recorder.affinities(first.task, scores, Progress(done, left - done, message), is_last)
        self._quarantine(recorder, state)
        self.wakeups.wake("index")

    def _sort_out(self, batch: Batch, results: Sequence[float | Refused], state: _Slice) -> set[Arm]:
        """Puts refused arms aside; notes whether any adapter worked."""
        refused: set[Arm] = set()
        for (arm, _), result in zip(batch.places, results, strict=True):
            if isinstance(result, Refused):
                refused.add(arm)
                state.aside[arm] = result.reason
        state.some_adapter_worked |= any(not arm.is_base and arm not in refused for arm, _ in batch.places)
        return refused

    def _quarantine(self, recorder: Recorder, state: _Slice) -> None:
        """Quarantines what is aside, once another adapter shows that the backend is not to blame."""
        if not state.some_adapter_worked:
            return
        for arm in list(state.aside):
            recorder.quarantine(arm, state.aside.pop(arm))
            _log.warning("worker.adapter.quarantined", adapter=arm.adapter_id, version=arm.version)

    def _end(self, recorder: Recorder, pool: PoolState | None, state: _Slice) -> None:
        if state.aside and pool is not None and _was_any_adapter_measured(pool):
            state.some_adapter_worked = True
            self._quarantine(recorder, state)
        if state.aside:
            arm, reason = next(iter(state.aside.items()))
            raise FailedPrecondition(
                "BACKEND_REFUSES_ADAPTERS",
                f"the backend refuses every adapter, {arm.adapter_id} for: {reason}; check that its adapter "
                "store is the registry's",
            )
        recorder.end("SUCCEEDED", "done" if pool else "the pool is gone")
        self.wakeups.wake("index")

    def _fail(self, lease: Lease, error: Exception) -> None:
        """Tries again later, or ends the operation after too many failures in a row."""
        claim = lease.claim
        outbox.fail(self.engine, claim, error)
        final = isinstance(error, FailedPrecondition) and error.reason == "BACKEND_REFUSES_ADAPTERS"
        if not final and claim.attempts < self.settings.max_attempts:
            return
        detail = f"{error.reason}: {error.message}" if isinstance(error, LorauterError) else "internal error"
        with Session(self.engine) as session:
            operation = session.get(Operation, (claim.tenant, claim.key))
        if operation is not None:
            with suppress(LeaseLost):
                Recorder(self.engine, lease, operation.pool).end("FAILED", "given up", detail)


def _scope(operation: Operation) -> Scope:
    request = operation.request
    return Scope(
        task_ids=frozenset(request.get("task_ids") or ()),
        adapter_ids=frozenset(request.get("adapter_ids") or ()),
        remeasure_before=operation.create_time if request.get("remeasure") else None,
    )


def _was_any_adapter_measured(pool: PoolState) -> bool:
    return any(row.adapter_version > 0 and not row.imported for task in pool.tasks for row in task.affinities)
