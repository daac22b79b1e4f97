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

# Of an adapter whose active versions were measured that one counts which is served: see served_version().
_ARMS = text(
    "WITH active AS MATERIALIZED (SELECT v.adapter_id, v.version, array_agg(v.version) OVER ("
    "PARTITION BY v.adapter_id ORDER BY "
    "coalesce(adapter.aliases -> :champion = to_jsonb(v.version), false) DESC, v.version DESC "
    "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS served_before "
    "FROM adapter_version v JOIN adapter ON adapter.tenant = v.tenant AND adapter.id = v.adapter_id "
    "WHERE v.tenant = :tenant AND v.state = 'ACTIVE') "
    "SELECT arm.* FROM unnest(CAST(:ids AS text[]), CAST(:versions AS int[])) AS task (id, version) "
    "CROSS JOIN LATERAL (WITH measured AS (SELECT a.* FROM affinity a "
    "JOIN active ON active.adapter_id = a.adapter_id AND active.version = a.adapter_version "
    "WHERE a.tenant = :tenant AND a.task_id = task.id AND a.task_version = task.version "
    "AND (active.served_before IS NULL OR NOT EXISTS (SELECT 1 FROM affinity b "
    "WHERE b.tenant = :tenant AND b.task_id = task.id AND b.task_version = task.version "
    "AND b.adapter_id = a.adapter_id AND b.adapter_version = ANY (active.served_before)))) "
    "(SELECT 'base' AS role, * FROM affinity WHERE tenant = :tenant AND task_id = task.id "
    "AND task_version = task.version AND adapter_id = :base) "
    "UNION ALL (SELECT 'best', * FROM measured ORDER BY eligible DESC, shrunk_score DESC, "
    'likelihood DESC NULLS LAST, standard_error, adapter_id COLLATE "C" LIMIT 1) '
    "UNION ALL (SELECT 'chosen', * FROM measured WHERE eligible AND place > 0 "
    'ORDER BY place, adapter_id COLLATE "C" LIMIT 1)) AS arm'
)


def measured(session: Session, tenant: str, rows: Sequence[tables.Task]) -> dict[str, dict[str, Any]]:
    """Returns ``base_score``, ``best_score``, ``best_adapter`` and ``lift`` of tasks, by task, where known.

    Of their current versions. The best adapter is the one that routing prefers: of the eligible ones, if
    there are any, that of the highest shrunk score; ties go to the likelier, the surer, then by id. The lift
    is of the one that the choosing examples chose, so that the examples behind it chose nobody.
    """
    versions = {row.id: row.version for row in rows if row.version}
    values = {"tenant": tenant, "ids": list(versions), "versions": list(versions.values())}
    arms: dict[str, dict[str, Row[Any]]] = {}
    for row in session.connection().execute(_ARMS, {**values, "base": BASE, "champion": CHAMPION}):
        arms.setdefault(row.task_id, {})[row.role] = row
    return {task_id: _summary(found) for task_id, found in arms.items()}


def _summary(arms: Mapping[str, Row[Any]]) -> dict[str, Any]:
    base, best = arms.get("base"), arms.get("best")
    summary: dict[str, Any] = {}
    if base is not None:
        summary |= {"base_score": base.score, "lift": _lift(base, best, arms.get("chosen"))}
    if best is not None:
        summary |= {"best_score": best.score, "best_adapter": best.adapter_id}
    return summary


def _lift(base: Row[Any], best: Row[Any] | None, chosen: Row[Any] | None) -> Lift | None:
    """Returns the lift card; None before the base, and an adapter that is eligible, were judged."""
    if chosen is None:
        if best is not None and best.eligible:
            return None  # imported without the place: nobody knows which examples chose it
        chosen = base
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
