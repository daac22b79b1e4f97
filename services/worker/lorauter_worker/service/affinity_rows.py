"""Writes the affinities of a task as one statement."""

# ruff: noqa: S608 - only constants of this file are put together

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from lorauter.matching import Evidence
from lorauter_worker.domain.arms import Arm
from lorauter_worker.service.task_table import MatchingTask

_TYPES = {
    "adapter_id": "text",
    "adapter_version": "int",
    "score": "float8",
    "count": "int",
    "standard_error": "float8",
    "round": "int",
    "shrunk_score": "float8",
    "eligible": "bool",
    "judged_score": "float8",
    "judged_count": "int",
    "lift": "float8",
    "lift_error": "float8",
    "likelihood": "float8",
    "place": "int",
    "measure_time": "timestamptz",
}
"""Columns that differ from arm to arm, by type."""

_NAMES = ", ".join(_TYPES)
_CHANGED = (*list(_TYPES)[2:], "metric", "metric_version", "prompt_digest", "imported")
_UPSERT = text(f"""
INSERT INTO affinity AS held (tenant, task_id, task_version, metric, metric_version, prompt_digest, imported,
                              {_NAMES})
SELECT :tenant, :task, :version, :metric, :metric_version, :prompt, false, {_NAMES}
FROM unnest({", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _TYPES.items())}) AS fresh ({_NAMES})
ON CONFLICT (tenant, task_id, task_version, adapter_id, adapter_version) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in _CHANGED)}
WHERE ({", ".join(f"held.{name}" for name in _CHANGED)})
    IS DISTINCT FROM ({", ".join(f"excluded.{name}" for name in _CHANGED)})
""")
_HELD = text(
    "SELECT adapter_id, adapter_version FROM affinity "
    "WHERE tenant = :tenant AND task_id = :task AND task_version = :version"
)


def write_affinities(
    connection: Connection, task: MatchingTask, rows: Sequence[tuple[Arm, Evidence, datetime]]
) -> None:
    """Writes each arm's evidence and when it was measured, in place of what is there."""
    columns: dict[str, list[Any]] = {name: [] for name in _TYPES}
    for arm, evidence, time in rows:
        own = {"adapter_id": arm.adapter_id, "adapter_version": arm.version, "measure_time": time}
        for name, values in columns.items():
            values.append(own[name] if name in own else getattr(evidence, name))
    connection.execute(_UPSERT, {**task.parameters(), **columns})


def held_affinities(connection: Connection, task: MatchingTask) -> set[tuple[str, int]]:
    """Returns the adapters and versions that have an affinity on the task's version."""
    return {(row.adapter_id, row.adapter_version) for row in connection.execute(_HELD, task.parameters())}
