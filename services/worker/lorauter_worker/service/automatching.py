"""Starts a matching by itself where something is unmeasured, and says which tasks are matched."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import Engine, text
from sqlmodel import Session, select

from lorauter.store.tables import Operation, Outbox, Pool
from lorauter_worker.domain.cells import Scope, TaskPlan, plan
from lorauter_worker.service.cells import matching_arms, matching_tasks
from lorauter_worker.service.state import PoolState, TaskState, lock_generation, read_pool

KIND = "matching"
"""The kind of operations that this makes."""

_UNDER_WAY = text(
    "SELECT EXISTS (SELECT 1 FROM operation WHERE tenant = :tenant AND pool = :pool AND kind = 'matching' "
    "AND state IN ('PENDING', 'RUNNING'))"
)
_MATCHED = text(
    "UPDATE task SET state = 'MATCHED', update_time = clock_timestamp() "
    "FROM unnest(CAST(:ids AS text[]), CAST(:created AS timestamptz[]), CAST(:versions AS int[])) "
    "AS seen (id, created, version) WHERE task.tenant = :tenant AND task.id = seen.id "
    "AND task.create_time = seen.created AND task.version = seen.version "
    "AND task.state IN ('EMBEDDED', 'MATCHING')"
)
_STOPPED = text(
    "SELECT EXISTS (SELECT 1 FROM (SELECT state, update_time FROM operation WHERE tenant = :tenant "
    "AND pool = :pool AND kind = 'matching' ORDER BY create_time DESC LIMIT 1) AS last "
    "WHERE last.state = 'CANCELLED' AND NOT EXISTS (SELECT 1 FROM task_version v JOIN task t "
    "ON t.tenant = v.tenant AND t.id = v.task_id WHERE t.tenant = :tenant AND t.pool = :pool "
    "AND v.create_time > last.update_time) AND NOT EXISTS (SELECT 1 FROM adapter_version v "
    "JOIN adapter a ON a.tenant = v.tenant AND a.id = v.adapter_id WHERE a.tenant = :tenant "
    "AND a.pool = :pool AND v.create_time > last.update_time))"
)


def start_matchings(engine: Engine, tenant: str) -> int:
    """Creates a matching for every pool that has unmeasured cells and a backend to measure them.

    Pools with a matching under way are left alone; its end looks here again. Where the last one was
    cancelled none starts by itself before a newer task or adapter version asks for it. Tasks without
    unmeasured cells become MATCHED. Returns the number of matchings created.
    """
    with Session(engine) as session:
        pools = session.exec(select(Pool.id).where(Pool.tenant == tenant)).all()
        return sum(_look_at(session, tenant, pool_id) for pool_id in pools)


def _look_at(session: Session, tenant: str, pool_id: str) -> bool:
    """Looks at one pool in a transaction of its own; returns whether a matching was created."""
    pool = None if _is_under_way(session, tenant, pool_id) else read_pool(session, tenant, pool_id)
    created = False
    if pool is not None:
        plans = plan(matching_tasks(pool, most=1), matching_arms(pool), Scope())
        matched = _newly_matched(pool, plans)
        wanted = _is_wanted(pool, plans) and not _is_stopped(session, tenant, pool_id)
        if matched or wanted:
            lock_generation(session.connection(), tenant)
            _mark_matched(session, tenant, matched)
            created = wanted and not _is_under_way(session, tenant, pool_id)
            if created:
                _create(session, tenant, pool_id)
    session.commit()
    return created


def _is_under_way(session: Session, tenant: str, pool_id: str) -> bool:
    values = {"tenant": tenant, "pool": pool_id}
    return bool(session.connection().execute(_UNDER_WAY, values).scalar_one())


def _is_wanted(pool: PoolState, plans: Sequence[TaskPlan]) -> bool:
    has_backend = any(row.kind == "ENGINE" and row.state == "ACTIVE" for row in pool.backends)
    return has_backend and any(plan.task.state != "REGISTERED" for plan in plans)


def _is_stopped(session: Session, tenant: str, pool_id: str) -> bool:
    values = {"tenant": tenant, "pool": pool_id}
    return bool(session.connection().execute(_STOPPED, values).scalar_one())


def _newly_matched(pool: PoolState, plans: Sequence[TaskPlan]) -> list[TaskState]:
    unfinished = {plan.task.task_id for plan in plans}
    return [
        task
        for task in pool.tasks
        if task.affinities and task.row.id not in unfinished and task.row.state in ("EMBEDDED", "MATCHING")
    ]


def _mark_matched(session: Session, tenant: str, tasks: Sequence[TaskState]) -> None:
    values = {
        "ids": [task.row.id for task in tasks],
        "created": [task.row.create_time for task in tasks],
        "versions": [task.version.version for task in tasks],
    }
    session.connection().execute(_MATCHED, {"tenant": tenant, **values})


def _create(session: Session, tenant: str, pool_id: str) -> None:
    operation = Operation(
        tenant=tenant,
        id=str(uuid.uuid4()),
        kind=KIND,
        pool=pool_id,
        request={"task_ids": [], "adapter_ids": [], "remeasure": False, "strategy": ""},
        message="waiting for a worker",
    )
    session.add(operation)
    session.add(Outbox(tenant=tenant, topic="matching", key=operation.id, generation=0))
