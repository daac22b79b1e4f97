"""Plans a matching: splits it into parts, one for each task that lacks something, and ends it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import numpy as np
from sqlalchemy import Connection, Engine, text

from lorauter.matching import Table, choosing_count, strategy
from lorauter.store import read
from lorauter.store.tables import Operation, Pool
from lorauter_worker.config import Settings
from lorauter_worker.domain.matching_request import MatchingRequest
from lorauter_worker.ports import Wakeups
from lorauter_worker.service import outbox, progress
from lorauter_worker.service.budgets import Account, Stop, lock_account
from lorauter_worker.service.lacking import Lack, read_arms, read_lacking
from lorauter_worker.service.lease import Lease
from lorauter_worker.service.state import lock_generation

PLAN_SECONDS = 10.0
"""How often a running operation is looked at for tasks and adapters that came since."""

STOP_SECONDS = 1.0
"""How soon an operation that is to stop looks again whether its last batches are recorded."""

WOKEN = 64
"""Most workers that are woken at once; each goes on as long as there is work."""

_PARTS = text(
    "SELECT key FROM outbox WHERE tenant = :tenant AND topic = 'matching' "
    "AND starts_with(key, :operation || '/')"
)
_PLANNED = text(
    "SELECT key FROM outbox WHERE tenant = :tenant AND topic = 'matching' "
    "AND starts_with(key, :operation || '/') UNION ALL "
    "SELECT operation_id || '/' || task_id FROM operation_part WHERE tenant = :tenant "
    "AND operation_id = :operation AND state = 'DONE' AND update_time >= :seen"
)
_NOW = text("SELECT clock_timestamp()")
_PLAN = text(
    'INSERT INTO operation_part (tenant, operation_id, task_id, state, done, "left", in_flight, alive) '
    "SELECT :tenant, :operation, task, 'PENDING', 0, expected, 0, '[]'::jsonb "
    "FROM unnest(CAST(:tasks AS text[]), CAST(:expected AS bigint[])) AS lack (task, expected) "
    "ON CONFLICT (tenant, operation_id, task_id) "
    'DO UPDATE SET state = \'PENDING\', "left" = excluded."left", in_flight = 0'
)
_SET_ASIDE = text(
    "DELETE FROM outbox WHERE id IN (SELECT o.id FROM outbox o JOIN operation_part p "
    "ON p.tenant = o.tenant AND o.key = p.operation_id || '/' || p.task_id "
    "WHERE o.tenant = :tenant AND o.topic = 'matching' AND p.operation_id = :operation "
    "AND (o.lease_until IS NULL OR o.lease_until <= clock_timestamp()) "
    "AND (:all OR p.state = 'PENDING' OR p.\"left\" > 0) FOR UPDATE OF o SKIP LOCKED)"
)
_TASKS = text("SELECT count(*) FROM operation_part WHERE tenant = :tenant AND operation_id = :operation")


@dataclass(frozen=True, slots=True)
class _Outlook:
    """What an operation lacks as of one moment: of how many arms, and whether there is a pool at all."""

    seen: datetime
    has_pool: bool
    arms: int
    lacking: tuple[Lack, ...]


@dataclass(frozen=True, slots=True)
class Coordinator:
    """Does the work that is keyed by the operation itself: cheap, and safe to do again at any time."""

    engine: Engine
    wakeups: Wakeups
    settings: Settings

    def work(self, lease: Lease, operation: Operation) -> None:
        """Plans parts for what is lacking now, or ends the operation when nothing is left.

        Raises InvalidArgument (UNKNOWN_STRATEGY).
        """
        request = MatchingRequest.from_json(operation.request)
        name = operation.progress.get("strategy") or request.strategy or self.settings.matching_strategy
        strategy(name)
        outlook = self._outlook(operation, request)
        fresh: list[Lack] = []
        with self.engine.begin() as connection:
            lock_generation(connection, operation.tenant)
            lease.fence(connection)
            account = lock_account(connection, operation.tenant, operation.id)
            progress.begin(connection, operation.tenant, operation.id, name)
            if account.stop is Stop.CANCELLED or (account.stop and outlook.lacking):
                again = _stop(connection, operation, account, outlook)
            else:
                fresh = _unplanned(connection, operation, outlook)
                again = self._plan(connection, operation, name, outlook, fresh)
        if again:
            outbox.carry_on(self.engine, lease.claim, again)
        else:
            self.wakeups.wake("index")
        for _ in fresh[:WOKEN]:
            self.wakeups.wake("matching")

    def _outlook(self, operation: Operation, request: MatchingRequest) -> _Outlook:
        tenant, pool = operation.tenant, operation.pool
        with read(self.engine) as session:
            seen = session.connection().execute(_NOW).scalar_one()
            if session.get(Pool, (tenant, pool)) is None:
                return _Outlook(seen, has_pool=False, arms=0, lacking=())
            arms = read_arms(session, tenant, pool)
            asked = [arm for arm in arms if request.asks_for_arm(arm)]
            since = operation.create_time if request.remeasure else None
            lacking = read_lacking(session, tenant, pool, asked, request.task_ids, since)
        return _Outlook(seen, has_pool=True, arms=len(arms), lacking=tuple(lacking))

    def _plan(
        self,
        connection: Connection,
        operation: Operation,
        name: str,
        outlook: _Outlook,
        fresh: list[Lack],
    ) -> float:
        """Makes parts for ``fresh``; returns the seconds to the next look, 0 if the operation ended."""
        at = {"tenant": operation.tenant, "operation": operation.id}
        if not fresh and not connection.execute(_PARTS, at).first():
            message = "done" if outlook.has_pool else "the pool is gone"
            progress.end(connection, operation, "SUCCEEDED", message)
            return 0.0
        if fresh:
            most = self.settings.matching_examples
            values = {
                "tasks": [lack.task_id for lack in fresh],
                "expected": [_expected(name, outlook.arms, lack, most) for lack in fresh],
            }
            connection.execute(_PLAN, {**at, **values})
            priority = MatchingRequest.from_json(operation.request).priority
            for lacks_base in (True, False):
                keys = [f"{operation.id}/{lack.task_id}" for lack in fresh if lack.lacks_base == lacks_base]
                # at equal priority the tasks that routing cannot use at all come first
                outbox.owe(connection, operation.tenant, "matching", keys, 2 * priority + lacks_base)
            progress.sum_up(connection, operation.tenant, operation.id, f"{len(fresh)} tasks to measure")
        return PLAN_SECONDS


def _unplanned(connection: Connection, operation: Operation, outlook: _Outlook) -> list[Lack]:
    """Returns what lacks a part: none that is owed, and none that was done since it was looked at."""
    at = {"tenant": operation.tenant, "operation": operation.id, "seen": outlook.seen}
    planned = set(connection.execute(_PLANNED, at).scalars())
    return [lack for lack in outlook.lacking if f"{operation.id}/{lack.task_id}" not in planned]


def _stop(connection: Connection, operation: Operation, account: Account, outlook: _Outlook) -> float:
    """Ends the operation once no batch is in flight; returns the seconds to the next look, 0 if it ended."""
    at = {"tenant": operation.tenant, "operation": operation.id}
    is_cancelled = account.stop is Stop.CANCELLED
    connection.execute(_SET_ASIDE, {**at, "all": is_cancelled})
    if connection.execute(_PARTS, at).first():
        return STOP_SECONDS
    message = account.why
    if not is_cancelled:
        left = len(outlook.lacking)
        count = max(left, connection.execute(_TASKS, at).scalar_one())
        message = f"stopped by {message}: {left} of {count} tasks are left; start again to go on"
    progress.end(connection, operation, "CANCELLED", message)
    return 0.0


def _expected(name: str, arms: int, lack: Lack, most: int) -> int:
    """Returns about how many evaluations a task takes: its share of a task of which nothing is known."""
    return max(1, _of_fresh(name, arms, min(lack.example_count, most)) * lack.arms // arms)


@lru_cache(maxsize=1024)
def _of_fresh(name: str, arms: int, examples: int) -> int:
    unknown = np.full((arms, examples), np.nan)
    return strategy(name).plan(Table(unknown, unknown, choosing_count(examples), base=0)).left
