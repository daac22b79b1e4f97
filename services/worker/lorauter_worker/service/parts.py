"""Works on one part of a matching: measures one task, batch by batch, until its strategy has enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import numpy as np
from sqlalchemy import Engine
from sqlmodel import Session, select

from lorauter.errors import FailedPrecondition
from lorauter.matching import Plan, Strategy, evidence, strategy
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
from lorauter_worker.service.sets import Sets, read_sets
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


class Step(Enum):
    """What a part did: measured a batch, something that leads to another step, or all that it may for now."""

    MEASURED = auto()
    AGAIN = auto()
    OVER = auto()


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
    _refused_sets: set[str] = field(default_factory=set)
    _has_begun: bool = False
    _budget_is_spent: bool = False
    """No composition is measured any more."""
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
        while (step := self._step(planner)) is not Step.OVER:
            if step is Step.MEASURED and time.monotonic() >= deadline:  # so that every slice gets on
                outbox.carry_on(self.means.engine, self.lease.claim)
                return

    def _step(self, planner: Strategy) -> Step:
        table = self._current()
        if table is None:
            self._recorder.leave(is_done=True)
            return Step.OVER
        if self._put_out(table, without_effect(table)):
            return Step.AGAIN
        plan = planner.plan(table.table, table.asked)
        if not plan.is_done:
            self._begin(table, plan)
            return self._measure(table, planner, plan)
        if self._refusals.aside:
            self._settle()
            return Step.AGAIN
        sets = self._sets(table, plan)
        lacking = self._lacking(sets)
        if sets is not None and lacking:
            self._begin(table, plan)
            return self._compose(sets, plan, lacking)
        return Step.OVER if self._finish(table, plan, sets) else Step.AGAIN

    def _begin(self, table: TaskTable, plan: Plan) -> None:
        if not self._has_begun:
            self._recorder.begin(table.task, plan)
            self._has_begun = True

    def _measure(self, table: TaskTable, planner: Strategy, plan: Plan) -> Step:
        cells = self._reserve(plan)
        if not cells:
            return Step.OVER
        answers = self._ask(table, plan, cells)
        self._table = self._without_aside(table)
        plan = planner.plan(self._table.table, self._table.asked)
        now = self._recorder.measured(table, answers, plan)
        table.times.update({table.arms[row].digest: now for row, _ in answers})
        self._quarantine_aside()
        return Step.MEASURED

    def _sets(self, table: TaskTable, plan: Plan) -> Sets | None:
        """Returns the compositions of a task whose adapters are measured."""
        found = evidence(table.table, plan)
        with read(self.means.engine) as session:
            return read_sets(session, table, found, self._refused_sets, self._recorder.since)

    def _lacking(self, sets: Sets | None) -> list[Cell]:
        """Returns what is to be measured of compositions: nothing where no backend takes them."""
        lacking = sets.lacking() if sets is not None and not self._budget_is_spent else []
        if not lacking or (self._evaluator is None and not self._backends()):
            return []
        self._evaluator = self._evaluator or self._make_evaluator()
        return lacking if self._evaluator.takes_sets else []

    def _compose(self, sets: Sets, plan: Plan, lacking: Sequence[Cell]) -> Step:
        """Measures a batch of what compositions lack; one that a backend refuses is left out.

        A spent budget does not keep what was measured of adapters from being written.
        """
        wanted = lacking[: self.means.pace.most(self.means.settings.matching_batch)]
        self.means.pace.wait()
        count, account = self._recorder.reserve(len(wanted))
        if account.stop is not None:
            self._budget_is_spent = True
            return Step.AGAIN
        if not count:
            outbox.carry_on(self.means.engine, self.lease.claim, WAIT_SECONDS)
            return Step.OVER
        results = dict(zip(wanted[:count], self._evaluate(sets.table, wanted[:count]), strict=True))
        answers = {cell: result for cell, result in results.items() if isinstance(result, Answer)}
        refused = {
            sets.table.arms[row].adapter_id: result.detail
            for (row, _), result in results.items()
            if isinstance(result, Refused)
        }
        self._refused_sets |= refused.keys()
        for name, detail in refused.items():
            _log.warning("worker.composition.refused", composition=name, detail=detail)
        self._check(answers, plan)
        self._recorder.measured(sets.table, answers, replace(plan, left=len(lacking) - len(answers)))
        return Step.AGAIN if refused else Step.MEASURED  # another slice would ask for it again

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
            results = self._evaluate(table, cells, plan.likelihood_only)
        except FailedPrecondition as error:
            if plan.likelihood_only and error.reason == "LIKELIHOOD_UNSUPPORTED":
                self._tells_likelihoods = False  # so that the next plan asks for scores
                return {}
            raise
        answers = self._refusals.sort_out(table, cells, results)
        self._check(answers, plan)
        table.fill_in(answers)
        return answers

    def _evaluate(
        self, table: TaskTable, cells: Sequence[Cell], likelihood_only: bool = False
    ) -> list[Answer | Refused]:
        try:
            evaluator = self._evaluator = self._evaluator or self._make_evaluator()
            self.means.pace.sent(len(cells))
            results = evaluator.evaluate(table.questions(cells), table.task.scoring, likelihood_only)
        except Exception:
            with suppress(LeaseLost):
                self._recorder.give_back()
            raise
        telemetry.EVALUATIONS.inc(len(results))
        return results

    def _check(self, answers: dict[Cell, Answer], plan: Plan) -> None:
        """Sees to it that every batch brings the table nearer to its end."""
        if plan.likelihood_only:
            self._tells_likelihoods &= not any(np.isnan(answer.likelihood) for answer in answers.values())
        elif any(np.isnan(answer.score) for answer in answers.values()):
            raise FailedPrecondition("BACKEND_REFUSED", "the backend gave answers without scores")

    def _make_evaluator(self) -> Evaluator:
        return self.means.make_evaluator(self._backends(), self.means.settings.evaluation_timeout_seconds)

    def _backends(self) -> list[tuple[str, str]]:
        with Session(self.means.engine) as session:
            statement = select(Backend).where(
                Backend.tenant == self.operation.tenant,
                Backend.pool == self.operation.pool,
                Backend.state == "ACTIVE",
            )
            return [(row.kind, row.url) for row in session.exec(statement)]

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

    def _finish(self, table: TaskTable, plan: Plan, sets: Sets | None) -> bool:
        """Writes the task's affinities and compositions; returns False if there is more to do after all."""
        found = [
            (arm, evident, table.times.get(arm.digest, self.operation.create_time))
            for arm, evident, asked in zip(table.arms, evidence(table.table, plan), table.asked, strict=True)
            if asked or evident.count
        ]
        if not self._recorder.finish(table, plan, found, sets.judged() if sets else ()):
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
