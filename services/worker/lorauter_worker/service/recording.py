"""Writes what a matching measured, and how far it is; only while its claim is the newest."""

# ruff: noqa: S608 - only constants of this file are put together

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session

from lorauter.store import tables, write
from lorauter.store.session import Write
from lorauter_worker.domain.cells import Arm, MatchingTask
from lorauter_worker.domain.scores import mean_and_error
from lorauter_worker.service import outbox
from lorauter_worker.service.lease import Lease, LeaseLost
from lorauter_worker.service.state import lock_generation

_MEASURED_AGAIN = (
    "metric",
    "metric_version",
    "prompt_digest",
    "score",
    "count",
    "standard_error",
    "round",
    "imported",
)
_TASK_STATE = text(
    "UPDATE task SET state = :state, update_time = clock_timestamp() WHERE tenant = :tenant AND id = :id "
    "AND create_time = :created AND version = :version "
    "AND state IN ('EMBEDDED', 'MATCHING') AND state <> :state"
)
_TOUCHED = "update_time = CASE WHEN cancel_requested THEN update_time ELSE clock_timestamp() END"
"""Leaves when a cancelled operation was asked to stop: see automatching."""

_PROGRESS = text(
    "UPDATE operation SET done = done + :done, total = done + :done + :left, message = :message, "
    f"{_TOUCHED} WHERE tenant = :tenant AND id = :id"
)
_BEGIN = text(
    "UPDATE operation SET state = 'RUNNING', total = done + :left, message = :message, "
    f"{_TOUCHED} WHERE tenant = :tenant AND id = :id AND state IN ('PENDING', 'RUNNING')"
)
_END = text(
    "UPDATE operation SET state = :state, message = :message, error = :error, "
    "total = CASE WHEN :is_whole THEN done ELSE total END, "
    f"{_TOUCHED}, end_time = clock_timestamp() "
    "WHERE tenant = :tenant AND id = :id AND state IN ('PENDING', 'RUNNING')"
)
_LEFT_OVER = text(
    "UPDATE task SET state = 'EMBEDDED', update_time = clock_timestamp() "
    "WHERE tenant = :tenant AND pool = :pool AND state = 'MATCHING'"
)
_CURRENT = text(
    "SELECT 1 FROM task WHERE tenant = :tenant AND id = :id AND create_time = :created "
    "AND version = :version FOR KEY SHARE"
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
class Progress:
    """What a batch did: evaluations done, evaluations left in the operation, and where it is."""

    done: int
    left: int
    message: str


class Recorder:
    """Writes for one operation. Every method raises LeaseLost, changing nothing, for an old claim."""

    def __init__(self, engine: Engine, lease: Lease, pool_id: str) -> None:
        self._engine = engine
        self._lease = lease
        self._pool_id = pool_id
        self._tenant = lease.claim.tenant
        self._id = {"tenant": self._tenant, "id": lease.claim.key}

    def begin(self, left: int, message: str) -> None:
        """Makes the operation RUNNING."""
        with self._engine.begin() as connection:
            self._fence(connection)
            connection.execute(_BEGIN, {**self._id, "left": left, "message": message})

    def set_task_state(self, task: MatchingTask, state: str) -> None:
        """Moves a task between EMBEDDED, MATCHING and MATCHED; one of another version stays."""
        with self._engine.begin() as connection:
            self._fence(connection)
            connection.execute(_TASK_STATE, {**self._task_values(task), "state": state})

    def affinities(
        self, task: MatchingTask, scores: Mapping[Arm, Sequence[float]], progress: Progress, is_last: bool
    ) -> None:
        """Writes whole cells as one change; ``is_last``: the task is MATCHED with them.

        Of a task that was deleted or replaced meanwhile only the progress is written.
        """
        with write(self._engine, self._tenant) as tx:
            connection = tx.session.connection()
            self._fence(connection)
            connection.execute(
                _PROGRESS,
                {**self._id, "done": progress.done, "left": progress.left, "message": progress.message},
            )
            if connection.execute(_CURRENT, self._task_values(task)).first() is None:
                tx.withdraw()
                return
            self._upsert(tx, task, scores)
            if is_last:
                connection.execute(_TASK_STATE, {**self._task_values(task), "state": "MATCHED"})
            tx.owe("index", self._pool_id)

    def quarantine(self, arm: Arm, reason: str) -> None:
        """Takes an adapter's version that backends refuse out of all decisions."""
        with write(self._engine, self._tenant) as tx:
            connection = tx.session.connection()
            self._fence(connection)
            values = {"tenant": self._tenant, "id": arm.adapter_id}
            changed = connection.execute(
                _QUARANTINE,
                {**values, "version": arm.version, "reason": f"refused by the backend: {reason}"[:2000]},
            )
            if changed.rowcount == 0:
                tx.withdraw()
                return
            connection.execute(_ADAPTER, {**values, "generation": tx.generation, "now": tx.now})
            tx.owe("index", self._pool_id)

    def end(self, state: str, message: str, error: str = "") -> None:
        """Ends the operation and its work; a success has the pool looked at for new cells."""
        with Session(self._engine) as session:
            connection = session.connection()
            lock_generation(connection, self._tenant)
            self._fence(connection)
            ended = {"state": state, "is_whole": state == "SUCCEEDED", "message": message, "error": error}
            connection.execute(_END, {**self._id, **ended})
            connection.execute(_LEFT_OVER, {"tenant": self._tenant, "pool": self._pool_id})
            outbox.finish(connection, self._lease.claim)
            if state == "SUCCEEDED":
                session.add(
                    tables.Outbox(tenant=self._tenant, topic="index", key=self._pool_id, generation=0)
                )
            session.commit()

    def _fence(self, connection: Connection) -> None:
        self._lease.check()
        if not outbox.still_holds(connection, self._lease.claim):
            raise LeaseLost

    def _task_values(self, task: MatchingTask) -> dict[str, object]:
        return {
            "tenant": self._tenant,
            "id": task.task_id,
            "created": task.created,
            "version": task.version,
        }

    def _upsert(self, tx: Write, task: MatchingTask, scores: Mapping[Arm, Sequence[float]]) -> None:
        rows = []
        for arm, values in scores.items():
            mean, error = mean_and_error(values)
            rows.append(
                {
                    "tenant": self._tenant,
                    "task_id": task.task_id,
                    "task_version": task.version,
                    "adapter_id": arm.adapter_id,
                    "adapter_version": arm.version,
                    "metric": task.metric,
                    "metric_version": task.metric_version,
                    "prompt_digest": task.prompt_digest,
                    "score": mean,
                    "count": len(values),
                    "standard_error": error,
                    "round": 0,
                    "imported": False,
                    "measure_time": tx.now,
                }
            )
        if not rows:
            return
        statement = insert(tables.Affinity)
        key = ["tenant", "task_id", "task_version", "adapter_id", "adapter_version"]
        changed = {name: statement.excluded[name] for name in (*_MEASURED_AGAIN, "measure_time")}
        upsert = statement.on_conflict_do_update(index_elements=key, set_=changed)
        tx.session.connection().execute(upsert, rows)
