"""Writes what a part measured, and how far it is; only while its claim is the newest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from lorauter.matching import Evidence, Plan
from lorauter.store import write
from lorauter.store.tables import Operation
from lorauter_worker.domain.arms import Arm
from lorauter_worker.ports import Answer, Fault
from lorauter_worker.service import outbox, progress
from lorauter_worker.service.affinity_rows import held_affinities, write_affinities
from lorauter_worker.service.budgets import Account, Stop, lock_account, send
from lorauter_worker.service.composition_rows import Composed, write_compositions
from lorauter_worker.service.lacking import read_arms, read_lacking
from lorauter_worker.service.lease import Lease, LeaseLost
from lorauter_worker.service.state import lock_generation
from lorauter_worker.service.task_table import Cell, MatchingTask, TaskTable

_TASK_STATE = text(
    "UPDATE task SET state = :state, update_time = clock_timestamp() WHERE tenant = :tenant AND id = :task "
    "AND create_time = :created AND version = :version "
    "AND state IN ('EMBEDDED', 'MATCHING') AND state <> :state"
)
_TASK = text(
    "SELECT create_time = :created AND version = :version AS is_current FROM task "
    "WHERE tenant = :tenant AND id = :task FOR KEY SHARE"
)
# What is held and not measured anew stays, unless it is too old, or of examples that are used no more.
_MEASURED = text("""
WITH fresh AS (
    SELECT digest, key, score, likelihood
    FROM unnest(CAST(:digests AS text[]), CAST(:keys AS bigint[]), CAST(:scores AS float8[]),
                CAST(:likelihoods AS float8[])) AS fresh (digest, key, score, likelihood)),
held AS (
    SELECT m.digest, cell.key, cell.score, cell.likelihood
    FROM measurement m, unnest(m.keys, m.scores, m.likelihoods) AS cell (key, score, likelihood)
    WHERE m.tenant = :tenant AND m.task_id = :task AND m.metric = :metric
      AND m.metric_version = :metric_version AND m.prompt_digest = :prompt
      AND m.digest IN (SELECT digest FROM fresh)
      AND (CAST(:since AS timestamptz) IS NULL OR m.measure_time >= CAST(:since AS timestamptz))
      AND (CAST(:used AS bigint[]) IS NULL OR cell.key = ANY(CAST(:used AS bigint[])))),
cell AS (
    SELECT digest, key, COALESCE(fresh.score, held.score, 'NaN') AS score,
           COALESCE(fresh.likelihood, held.likelihood, 'NaN') AS likelihood
    FROM fresh FULL JOIN held USING (digest, key))
INSERT INTO measurement AS m (tenant, task_id, digest, metric, metric_version, prompt_digest,
                              keys, scores, likelihoods, measure_time)
SELECT :tenant, :task, digest, :metric, :metric_version, :prompt,
       array_agg(key ORDER BY key), array_agg(score ORDER BY key), array_agg(likelihood ORDER BY key),
       clock_timestamp()
FROM cell GROUP BY digest
ON CONFLICT (tenant, task_id, digest, metric, metric_version, prompt_digest) DO UPDATE SET
    keys = excluded.keys, scores = excluded.scores, likelihoods = excluded.likelihoods,
    measure_time = excluded.measure_time
""")
_NOW = text("SELECT clock_timestamp()")
_DONE = text(
    'UPDATE operation_part SET state = :state, done = done + :count, "left" = :left, in_flight = 0, '
    "alive = CAST(:alive AS jsonb), update_time = clock_timestamp() "
    "WHERE tenant = :tenant AND operation_id = :operation AND task_id = :task"
)
_OTHERS = text(
    "SELECT EXISTS (SELECT 1 FROM outbox WHERE tenant = :tenant AND topic = 'matching' "
    "AND starts_with(key, :operation || '/'))"
)
_ADAPTER = text(
    "UPDATE adapter SET revision = revision + 1, generation = :generation, update_time = :now "
    "WHERE tenant = :tenant AND id = :id"
)
_QUARANTINE = text(
    "UPDATE adapter_version SET state = 'QUARANTINED', state_reason = :reason "
    "WHERE tenant = :tenant AND adapter_id = :id AND version = :version AND state = 'ACTIVE'"
)


@dataclass(frozen=True, slots=True)
class Recorder:
    """Writes for one part. Every method raises LeaseLost, changing nothing, for an old claim."""

    engine: Engine
    lease: Lease
    operation: Operation
    task_id: str
    since: datetime | None
    """Older measurements of what is asked for do not count, and are replaced."""

    def begin(self, task: MatchingTask, plan: Plan) -> None:
        """Says that the task is being measured, and how far it is."""
        with self.engine.begin() as connection:
            self._fence(connection)
            self._part(connection, 0, plan)
            connection.execute(_TASK_STATE, {**task.parameters(), "state": "MATCHING"})

    def reserve(self, wanted: int) -> tuple[int, Account]:
        """Counts as much of a batch as in flight as the budget allows; returns how much, and why not."""
        with self.engine.begin() as connection:
            self.lease.fence(connection)
            account = lock_account(connection, self.operation.tenant, self.operation.id)
            allowed = wanted if account.left is None else min(wanted, account.left)
            count = 0 if account.stop else allowed
            send(connection, self.operation.tenant, self.operation.id, self.task_id, count)
            return count, account

    def give_back(self) -> None:
        """Nothing is in flight any more: what was sent did not come back, or a dead worker had sent it."""
        with self.engine.begin() as connection:
            self.lease.fence(connection)
            send(connection, self.operation.tenant, self.operation.id, self.task_id, 0)

    def measured(self, table: TaskTable, answers: Mapping[Cell, Answer], plan: Plan) -> datetime:
        """Adds what cells gave to what is stored; returns the database's time of it.

        Of a task that was deleted meanwhile only the progress is written.
        """
        with self.engine.begin() as connection:
            self.lease.fence(connection)
            is_current = connection.execute(_TASK, table.task.parameters()).scalar()
            if is_current is not None and answers:
                values = self._cells(table, answers)
                if not is_current:  # what its new version uses is not known here
                    values["used"] = None
                connection.execute(_MEASURED, values)
            now: datetime = connection.execute(_NOW).scalar_one()
            self._lock(connection)
            self._part(connection, len(answers), plan)
        return now

    def finish(
        self,
        table: TaskTable,
        plan: Plan,
        found: Sequence[tuple[Arm, Evidence, datetime]],
        compositions: Sequence[Composed] = (),
    ) -> bool:
        """Writes all affinities of the task and its measured ``compositions``, in place of those before, as
        one change; it is MATCHED if it lacks nothing now.

        Returns False, and writes nothing, if the task was deleted or replaced meanwhile.
        """
        task = table.task
        with write(self.engine, self.operation.tenant) as tx:
            connection = tx.session.connection()
            self._fence(connection)
            if not connection.execute(_TASK, task.parameters()).scalar():
                tx.withdraw()
                return False
            held = set() if table.asked.all() else held_affinities(connection, task)
            asked = dict(zip(table.arms, table.asked, strict=True))
            rows = [row for row in found if asked[row[0]] or (row[0].adapter_id, row[0].version) in held]
            write_affinities(connection, task, rows)
            write_compositions(connection, task, compositions)
            arms = read_arms(tx.session, self.operation.tenant, self.operation.pool)
            at = (self.operation.tenant, self.operation.pool)
            lacks = read_lacking(tx.session, *at, arms, [task.task_id])
            state = "EMBEDDED" if lacks else "MATCHED"
            connection.execute(_TASK_STATE, {**task.parameters(), "state": state})
            self._part(connection, 0, plan, "DONE")
            self._close(connection)
            tx.owe("index", self.operation.pool)
        return True

    def leave(self, is_done: bool = False) -> None:
        """Ends the part's work for now: nothing may be measured, or (``is_done``) there is no such task."""
        with self.engine.begin() as connection:
            lock_generation(connection, self.operation.tenant)
            self.lease.fence(connection)
            if is_done:
                self._lock(connection)
                self._part(connection, 0, None, "DONE")
            self._close(connection, look_now=True)

    def quarantine(self, arm: Arm, fault: Fault, detail: str) -> None:
        """Takes an adapter's version out of all decisions, for a reason."""
        with write(self.engine, self.operation.tenant) as tx:
            connection = tx.session.connection()
            self._fence(connection)
            values = {"tenant": self.operation.tenant, "id": arm.adapter_id}
            reason = f"{fault}: {detail}"[:2000]
            changed = connection.execute(_QUARANTINE, {**values, "version": arm.version, "reason": reason})
            if changed.rowcount == 0:
                tx.withdraw()
                return
            connection.execute(_ADAPTER, {**values, "generation": tx.generation, "now": tx.now})
            progress.count_quarantined(connection, self.operation.tenant, self.operation.id)
            tx.owe("index", self.operation.pool)

    def _fence(self, connection: Connection) -> None:
        self.lease.fence(connection)
        self._lock(connection)

    def _lock(self, connection: Connection) -> None:
        account = lock_account(connection, self.operation.tenant, self.operation.id)
        if account.stop is Stop.ENDED:
            raise LeaseLost

    def _part(self, connection: Connection, count: int, plan: Plan | None, state: str = "RUNNING") -> None:
        """Adds ``count`` evaluations to what the part did; the operation's row must be locked."""
        values = {
            "tenant": self.operation.tenant,
            "operation": self.operation.id,
            "task": self.task_id,
            "state": state,
            "count": count,
            "left": plan.left if plan else 0,
            "alive": json.dumps(plan.alive if plan else ()),
        }
        connection.execute(_DONE, values)
        message = f"{self.task_id}: {'done' if state == 'DONE' else f'round {plan.round}' if plan else ''}"
        progress.sum_up(connection, self.operation.tenant, self.operation.id, message)

    def _close(self, connection: Connection, look_now: bool = False) -> None:
        """Ends the claim; the last part has the operation looked at, as it may be at its end."""
        outbox.finish(connection, self.lease.claim)
        at = {"tenant": self.operation.tenant, "operation": self.operation.id}
        if look_now or not connection.execute(_OTHERS, at).scalar():
            outbox.owe(connection, self.operation.tenant, "matching", [self.operation.id])

    def _cells(self, table: TaskTable, answers: Mapping[Cell, Answer]) -> dict[str, object]:
        """Returns the parameters of _MEASURED; arms of one content are one."""
        cells = {
            (table.arms[row].digest, table.task.examples[place].key): answer
            for (row, place), answer in answers.items()
        }
        return {
            **table.task.parameters(),
            "digests": [digest for digest, _ in cells],
            "keys": [key for _, key in cells],
            "scores": [_known(answer.score) for answer in cells.values()],
            "likelihoods": [_known(answer.likelihood) for answer in cells.values()],
            "since": self.since,
            "used": [example.key for example in table.task.examples],
        }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
