"""Writes and reads the measured compositions of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, delete, insert
from sqlmodel import Session, col, select

from lorauter.matching import Judgement
from lorauter.store import tables
from lorauter_worker.domain.arms import Arm
from lorauter_worker.service.task_table import MatchingTask

Composed = tuple[Arm, Judgement, datetime]
"""A weighted set, what came of it, and when it was measured."""


def write_compositions(connection: Connection, task: MatchingTask, rows: Sequence[Composed]) -> None:
    """Writes the compositions of a task in place of all that it had, of older versions too."""
    table = tables.Composition
    connection.execute(
        delete(table).where(col(table.tenant) == task.tenant, col(table.task_id) == task.task_id)
    )
    if rows:
        connection.execute(insert(table), [_row(task, *row) for row in rows])


def read_compositions(session: Session, tenant: str) -> list[tables.Composition]:
    """Returns all compositions of a tenant's current task versions, by task, largest gain first."""
    composition, task = tables.Composition, tables.Task
    statement = (
        select(composition)
        .join(task)
        .where(composition.tenant == tenant, composition.task_version == task.version)
        .order_by(composition.task_id, col(composition.gain).desc(), composition.name)
    )
    return list(session.exec(statement))


def _row(task: MatchingTask, arm: Arm, judgement: Judgement, time: datetime) -> dict[str, object]:
    members = sorted(arm.members, key=lambda member: -member[1])
    return {
        "tenant": task.tenant,
        "task_id": task.task_id,
        "task_version": task.version,
        "name": arm.adapter_id,
        "metric": task.scoring.metric.name,
        "metric_version": task.scoring.metric.version,
        "prompt_digest": task.prompt_digest,
        "members": [
            {"adapter_id": each.adapter_id, "version": each.version, "digest": each.digest, "weight": weight}
            for each, weight in members
        ],
        **asdict(judgement),
        "measure_time": time,
    }
