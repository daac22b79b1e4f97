"""What was measured on a task, in short: its base, its best adapter, and what routing gains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlmodel import Session

from lorauter.identifiers import BASE
from lorauter.store import tables
from lorauter.store.serving import CHAMPION
from lorauter_registry.domain.resources import Lift

# Of an adapter that version counts that is served: its champion, else the newest active one.
_ARMS = text(
    "SELECT arm.* FROM unnest(CAST(:ids AS text[]), CAST(:versions AS int[])) AS task (id, version) "
    "CROSS JOIN LATERAL ((SELECT * FROM affinity WHERE tenant = :tenant AND task_id = task.id "
    "AND task_version = task.version AND adapter_id = :base) "
    "UNION ALL (SELECT * FROM (SELECT DISTINCT ON (a.adapter_id) a.* FROM affinity a "
    "JOIN adapter_version v ON v.tenant = a.tenant AND v.adapter_id = a.adapter_id "
    "AND v.version = a.adapter_version AND v.state = 'ACTIVE' "
    "JOIN adapter ON adapter.tenant = a.tenant AND adapter.id = a.adapter_id "
    "WHERE a.tenant = :tenant AND a.task_id = task.id AND a.task_version = task.version "
    "ORDER BY a.adapter_id, "
    "coalesce(adapter.aliases -> :champion = to_jsonb(a.adapter_version), false) DESC, "
    "a.adapter_version DESC) AS served "
    "ORDER BY eligible DESC, shrunk_score DESC, standard_error, adapter_id LIMIT 1)) AS arm"
)


def measured(session: Session, tenant: str, rows: Sequence[tables.Task]) -> dict[str, dict[str, Any]]:
    """Returns ``base_score``, ``best_score``, ``best_adapter`` and ``lift`` of tasks, by task, where known.

    Of their current versions. The best adapter is the one that routing prefers: of the eligible ones, if
    there are any, that of the highest shrunk score; ties go to the surer, then by id.
    """
    versions = {row.id: row.version for row in rows if row.version}
    values = {"tenant": tenant, "ids": list(versions), "versions": list(versions.values())}
    arms: dict[str, dict[str, Row[Any]]] = {}
    for row in session.connection().execute(_ARMS, {**values, "base": BASE, "champion": CHAMPION}):
        arms.setdefault(row.task_id, {})["base" if row.adapter_id == BASE else "best"] = row
    return {task_id: _summary(found) for task_id, found in arms.items()}


def _summary(arms: Mapping[str, Row[Any]]) -> dict[str, Any]:
    base, best = arms.get("base"), arms.get("best")
    summary: dict[str, Any] = {}
    if base is not None:
        summary |= {"base_score": base.score, "lift": _lift(base, best)}
    if best is not None:
        summary |= {"best_score": best.score, "best_adapter": best.adapter_id}
    return summary


def _lift(base: Row[Any], best: Row[Any] | None) -> Lift | None:
    """Returns the lift card; None before the base, and an adapter that is eligible, were judged."""
    chosen = best if best is not None and best.eligible else base
    lift = 0.0 if chosen is base else chosen.lift
    if base.judged_score is None or chosen.judged_score is None or lift is None:
        return None
    return Lift(
        adapter_id=chosen.adapter_id,
        adapter_version=chosen.adapter_version,
        base_score=base.judged_score,
        score=chosen.judged_score,
        # what is stored is of all its examples; a score spreads alike on fewer of them
        standard_error=chosen.standard_error * math.sqrt(chosen.count / chosen.judged_count),
        count=chosen.judged_count,
        lift=lift,
        lift_error=chosen.lift_error,
    )
