"""Starts a matching by itself where something is unmeasured, and says which tasks are matched."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, TextClause, text
from sqlmodel import Session, select

from lorauter.store.tables import Operation, Pool
from lorauter_worker.domain.matching_request import MatchingRequest
from lorauter_worker.service import outbox
from lorauter_worker.service.lacking import Lack, read_arms, read_lacking
from lorauter_worker.service.state import lock_generation

KIND = "matching"
"""The kind of operations that this makes."""

_UNDER_WAY = text(
    "SELECT EXISTS (SELECT 1 FROM operation WHERE tenant = :tenant AND pool = :pool AND kind = 'matching' "
    "AND state IN ('PENDING', 'RUNNING'))"
)
_HAS_BACKEND = text(
    "SELECT EXISTS (SELECT 1 FROM backend WHERE tenant = :tenant AND pool = :pool AND state = 'ACTIVE')"
)
_UNMATCHED = text(
    "SELECT id, create_time, version FROM task WHERE tenant = :tenant AND pool = :pool "
    "AND state IN ('EMBEDDED', 'MATCHING') AND EXISTS (SELECT 1 FROM affinity a "
    "WHERE a.tenant = task.tenant AND a.task_id = task.id AND a.task_version = task.version)"
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
    """Creates a matching for every pool that lacks affinities and has a backend to measure them.

    Pools with a matching under way are left alone; its end looks here again. Where the last one was
    cancelled, or stopped by its budget, none starts by itself before a newer task or adapter version asks
    for it. Tasks that lack nothing become MATCHED. Returns the number of matchings created.
    """
    with Session(engine) as session:
        pools = session.exec(select(Pool.id).where(Pool.tenant == tenant)).all()
        return sum(_look_at(session, tenant, pool_id) for pool_id in pools)


def _look_at(session: Session, tenant: str, pool_id: str) -> bool:
    """Looks at one pool in a transaction of its own; returns whether a matching was created."""
    at = {"tenant": tenant, "pool": pool_id}
    created = False
    if not _is(session, _UNDER_WAY, at):
        lacking = read_lacking(session, tenant, pool_id, read_arms(session, tenant, pool_id))
        matched = _newly_matched(session, lacking, at)
        wanted = _is_wanted(session, lacking, at)
        if matched or wanted:
            lock_generation(session.connection(), tenant)
            _mark_matched(session, tenant, matched)
            created = wanted and not _is(session, _UNDER_WAY, at)
            if created:
                _create(session, tenant, pool_id)
    session.commit()
    return created


def _is(session: Session, statement: TextClause, at: Mapping[str, str]) -> bool:
    return bool(session.connection().execute(statement, at).scalar_one())


def _is_wanted(session: Session, lacking: Sequence[Lack], at: Mapping[str, str]) -> bool:
    is_ready = any(lack.state != "REGISTERED" for lack in lacking)
    return is_ready and _is(session, _HAS_BACKEND, at) and not _is(session, _STOPPED, at)


def _newly_matched(session: Session, lacking: Sequence[Lack], at: Mapping[str, str]) -> list[Any]:
    unfinished = {lack.task_id for lack in lacking}
    return [row for row in session.connection().execute(_UNMATCHED, at) if row.id not in unfinished]


def _mark_matched(session: Session, tenant: str, tasks: Sequence[Any]) -> None:
    values = {
        "ids": [task.id for task in tasks],
        "created": [task.create_time for task in tasks],
        "versions": [task.version for task in tasks],
    }
    session.connection().execute(_MATCHED, {"tenant": tenant, **values})


def _create(session: Session, tenant: str, pool_id: str) -> None:
    operation = Operation(
        tenant=tenant,
        id=str(uuid.uuid4()),
        kind=KIND,
        pool=pool_id,
        request=MatchingRequest().to_json(),
        message="waiting for a worker",
    )
    session.add(operation)
    session.flush()
    outbox.owe(session.connection(), tenant, "matching", [operation.id])
