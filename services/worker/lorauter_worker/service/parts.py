"""Works on one part of a matching: measures one task, batch by batch, until its strategy has enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from sqlalchemy import Engine
from sqlmodel import Session, select

from lorauter.errors import FailedPrecondition
from lorauter.matching import Plan, evidence, strategy
from lorauter.store import read
from lorauter.store.tables import Backend, Operation
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.config import Settings
from lorauter_worker.domain.arms import Arm
from lorauter_worker.domain.matching_request import MatchingRequest
from lorauter_worker.domain.pacing import Pace
from lorauter_worker.ports import Answer, Evaluator, Fault, Refused, Wakeups
from lorauter_worker.service import outbox
from lorauter_worker.service.lacking import read_arms
from lorauter_worker.service.lease import Lease, LeaseLost
from lorauter_worker.service.recording import Recorder
from lorauter_worker.service.refusals import Refusals, is_any_adapter_measured, without_effect
from lorauter_worker.service.state import read_generation
from lorauter_worker.service.task_table import Cell, TaskTable, is_current, read_table, read_task

_log = get_logger(__name__)

WAIT_SECONDS = 1.0
"""How soon a part looks again whether other parts' batches left something of the budget."""

MakeEvaluator = Callable[[Sequence[tuple[str, str]], float], Evaluator]
"""Makes an evaluator of backends (kind, url) and the seconds that a batch may take."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a process measures with."""

    engine: Engine
    make_evaluator: MakeEvaluator
    wakeups: Wakeups
    settings: Settings
    pace: Pace


@dataclass(slots=True)
class Part:
    """One claim of a part, for at most a slice."""

    means: Means
    lease: Lease
    operation: Operation
    task_id: str
    _recorder: Recorder = field(init=False)
    _request: MatchingRequest = field(init=False)
    _table: TaskTable | None = None
    _arms: list[Arm] = field(default_factory=list)
    """All arms of the pool, at ``_generation``."""
    _generation: int = -1
    _refusals: Refusals = field(default_factory=Refusals)
    _tells_likelihoods: bool = True
    _evaluator: Evaluator | None = None

    def __post_init__(self) -> None:
        self._request = MatchingRequest.from_json(self.operation.request)
        since = self.operation.create_time if self._request.remeasure else None
        self._recorder = Recorder(self.means.engine, self.lease, self.operation, self.task_id, since)

    def work(self, deadline: float) -> None:
        """Measures a batch, and goes on until the part is done or ``deadline`` (monotonic) passes.

        Raises LeaseLost, Unavailable (BACKEND_UNAVAILABLE) or FailedPrecondition (NO_EVALUATOR,
        BACKEND_REFUSED, BACKEND_REFUSES_ADAPTERS).
        """
        try:
            self._work(deadline)
        finally:
            if self._evaluator is not None:
                self._evaluator.close()

    def _work(self, deadline: float) -> None:
        self._recorder.give_back()  # what a dead worker had sent
        planner = strategy(self.operation.progress["strategy"])
        has_begun = False
        while True:
            table = self._current()
            if table is None:
                self._recorder.leave(is_done=True)
                return
            if self._put_out(table, without_effect(table)):
                continue
            plan = planner.plan(table.table, table.asked)
            if plan.is_done:
                if self._finish(table, plan):
                    return
                continue
            if not has_begun:
                self._recorder.begin(table.task, plan)
                has_begun = True
            cells = self._reserve(plan)
            if not cells:
                return
            answers = self._ask(table, plan, cells)
            self._table = self._without_aside(table)
            plan = planner.plan(self._table.table, self._table.asked)
            now = self._recorder.measured(table, answers, plan)
            table.times.update({table.arms[row].digest: now for row, _ in answers})
            self._quarantine_aside()
            if time.monotonic() >= deadline:  # after a batch, so that every slice gets on
                outbox.carry_on(self.means.engine, self.lease.claim)
                return

    def _current(self) -> TaskTable | None:
        """Returns the table, read anew if the task or the pool's arms changed; None if the task is gone."""
        with read(self.means.engine) as session:
            counter = read_generation(session, self.operation.tenant)
            generation = counter.value if counter else 0
            if self._table is not None and generation == self._generation:
                return self._table
            self._generation = generation
            arms = read_arms(session, self.operation.tenant, self.operation.pool)
            if self._table is not None and arms == self._arms and is_current(session, self._table.task):
                return self._table
            self._arms = arms
            self._table = self._read(session)
        return self._table

    def _read(self, session: Session) -> TaskTable | None:
        task = read_task(session, self.operation.tenant, self.task_id, self.means.settings.matching_examples)
        if task is None or not self._request.asks_for_task(self.task_id):
            return None
        table = read_table(session, task, self._arms, self._request.adapter_ids, self._recorder.since)
        return self._without_aside(table)

    def _without_aside(self, table: TaskTable) -> TaskTable:
        aside = [row for row, arm in enumerate(table.arms) if arm in self._refusals.aside]
        table = table.without(aside) if aside else table
        if table.table.likelihood_first and not self._tells_likelihoods:
            table.table = replace(table.table, likelihood_first=False)
        return table

    def _reserve(self, plan: Plan) -> list[Cell]:
        """Returns the cells of the next batch, row by row; none if the part may not go on now."""
        wanted = np.argwhere(plan.cells)[: self.means.pace.most(self.means.settings.matching_batch)]
        self.means.pace.wait()
        count, account = self._recorder.reserve(len(wanted))
        if account.stop is not None:
            self._recorder.leave()
        elif not count:
            outbox.carry_on(self.means.engine, self.lease.claim, WAIT_SECONDS)
        return [(int(row), int(place)) for row, place in wanted[:count]]

    def _ask(self, table: TaskTable, plan: Plan, cells: Sequence[Cell]) -> dict[Cell, Answer]:
        """Has a batch evaluated; returns, and fills in, the answers of the arms that gave any."""
        try:
            evaluator = self._evaluator = self._evaluator or self._make_evaluator()
            self.means.pace.sent(len(cells))
            results = evaluator.evaluate(table.questions(cells), table.task.scoring, plan.likelihood_only)
        except Exception as error:
            with suppress(LeaseLost):
                self._recorder.give_back()
            if plan.likelihood_only and getattr(error, "reason", "") == "LIKELIHOOD_UNSUPPORTED":
                self._tells_likelihoods = False  # so that the next plan asks for scores
                return {}
            raise
        telemetry.EVALUATIONS.inc(len(results))
        answers = self._refusals.sort_out(table, cells, results)
        self._check(answers, plan)
        table.fill_in(answers)
        return answers

    def _check(self, answers: dict[Cell, Answer], plan: Plan) -> None:
        """Sees to it that every batch brings the table nearer to its end."""
        if plan.likelihood_only:
            self._tells_likelihoods &= not any(np.isnan(answer.likelihood) for answer in answers.values())
        elif any(np.isnan(answer.score) for answer in answers.values()):
            raise FailedPrecondition("BACKEND_REFUSED", "the backend gave answers without scores")

    def _make_evaluator(self) -> Evaluator:
        with Session(self.means.engine) as session:
            statement = select(Backend).where(
                Backend.tenant == self.operation.tenant,
                Backend.pool == self.operation.pool,
                Backend.state == "ACTIVE",
            )
            backends = [(row.kind, row.url) for row in session.exec(statement)]
        return self.means.make_evaluator(backends, self.means.settings.evaluation_timeout_seconds)

    def _put_out(self, table: TaskTable, idle: Sequence[int]) -> bool:
        """Quarantines adapters without effect; returns whether there were any."""
        for row in idle:
            arm = table.arms[row]
            self._refusals.aside[arm] = Refused(
                Fault.NO_EFFECT, f"every target of task {self.task_id!r} is as likely as by the base"
            )
            self._quarantine(arm)
        if idle:
            self._table = table.without(idle)
        return bool(idle)

    def _quarantine_aside(self) -> None:
        if self._refusals.some_adapter_answered:
            for arm in list(self._refusals.aside):
                self._quarantine(arm)

    def _quarantine(self, arm: Arm) -> None:
        refused = self._refusals.aside.pop(arm)
        self._recorder.quarantine(arm, refused.fault, refused.detail)
        _log.warning(
            "worker.adapter.quarantined", adapter=arm.adapter_id, version=arm.version, fault=refused.fault
        )
        self.means.wakeups.wake("index")

    def _finish(self, table: TaskTable, plan: Plan) -> bool:
        """Writes the task's affinities; returns False if there is more to do after all."""
        if self._refusals.aside:
            self._settle()
            return False
        found = [
            (arm, evident, table.times.get(arm.digest, self.operation.create_time))
            for arm, evident, asked in zip(table.arms, evidence(table.table, plan), table.asked, strict=True)
            if asked or evident.count
        ]
        if not self._recorder.finish(table, plan, found):
            return False
        self.means.wakeups.wake("index")
        return True

    def _settle(self) -> None:
        """Quarantines what is aside if any adapter ever answered, else blames the backend."""
        with Session(self.means.engine) as session:
            at = (self.operation.tenant, self.operation.pool)
            self._refusals.some_adapter_answered |= is_any_adapter_measured(session, *at)
        if not self._refusals.some_adapter_answered:
            arm, refused = next(iter(self._refusals.aside.items()))
            raise FailedPrecondition(
                "BACKEND_REFUSES_ADAPTERS",
                f"the backend refuses every adapter, {arm.adapter_id} for: {refused.detail}; check that its "
                "adapter store is the registry's",
            )
        self._quarantine_aside()
