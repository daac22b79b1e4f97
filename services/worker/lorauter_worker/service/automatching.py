"""Starts a matching by itself where something is unmeasured, and says which tasks are matched."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import Engine, text
from sqlmodel import Session, select

from lorauter.store.tables import Operation, Outbox, Pool
from lorauter_worker.domain.cells import Scope, TaskPlan, plan
from lorauter_worker.service.cells import matching_arms, matching_tasks
from lorauter_worker.service.state import PoolState, read_pool

KIND = "matching"
"""The kind of operations that this makes."""

_UNDER_WAY = text(
    "SELECT EXISTS (SELECT 1 FROM operation WHERE tenant = :tenant AND pool = :pool AND kind = 'matching' "
    "AND state IN ('PENDING', 'RUNNING'))"
)
_MATCHED = text(
    "UPDATE task SET state = 'MATCHED', update_time = clock_timestamp() WHERE tenant = :tenant "
    "AND id = ANY(:ids) AND state IN ('EMBEDDED', 'MATCHING')"
)
_LOCK = text("SELECT 1 FROM generation WHERE tenant = :tenant FOR UPDATE")


def start_matchings(engine: Engine, tenant: str) -> int:
    """Creates a matching for every pool that has unmeasured cells and a backend to measure them.

    Pools with a matching under way are left alone; its end looks here again. Tasks without unmeasured
    cells become MATCHED. Returns the number of matchings created.
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
        _mark_matched(session, tenant, pool, plans)
        if _is_wanted(pool, plans):
            session.connection().execute(_LOCK, {"tenant": tenant})
            created = not _is_under_way(session, tenant, pool_id)
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


def _mark_matched(session: Session, tenant: str, pool: PoolState, plans: Sequence[TaskPlan]) -> None:
    unfinished = {plan.task.task_id for plan in plans}
    matched = [task.row.id for task in pool.tasks if task.affinities and task.row.id not in unfinished]
    session.connection().execute(_MATCHED, {"tenant": tenant, "ids": matched})


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
