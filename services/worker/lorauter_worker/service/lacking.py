"""What a matching still owes: arms without an affinity for a task as it is now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlmodel import Session

from lorauter.errors import LorauterError
from lorauter.identifiers import BASE
from lorauter.metrics import metric
from lorauter.telemetry import get_logger
from lorauter_worker.domain.arms import BASE_ARM, Arm
from lorauter_worker.domain.versions import matched_versions

_log = get_logger(__name__)

_ACTIVE = text(
    "SELECT a.id, a.aliases, v.version, v.digest FROM adapter a "
    "JOIN adapter_version v ON v.tenant = a.tenant AND v.adapter_id = a.id "
    "WHERE a.tenant = :tenant AND a.pool = :pool AND v.state = 'ACTIVE'"
)
_METRICS = text(
    "SELECT DISTINCT v.metric FROM task t JOIN task_version v "
    "ON v.tenant = t.tenant AND v.task_id = t.id AND v.version = t.version "
    "WHERE t.tenant = :tenant AND t.pool = :pool"
)
# Task by task, what is there is counted: one range of the primary key each.
_LACKING = text("""
WITH arm AS MATERIALIZED (
    SELECT id, version FROM unnest(CAST(:ids AS text[]), CAST(:versions AS int[])) AS arm (id, version)),
known AS (
    SELECT name, version FROM unnest(CAST(:metrics AS text[]), CAST(:metric_versions AS int[]))
    AS known (name, version))
SELECT t.id, t.state, t.example_count, CAST(:count AS int) - there.arms, NOT there.base
FROM task t
JOIN task_version v ON v.tenant = t.tenant AND v.task_id = t.id AND v.version = t.version
JOIN known ON known.name = v.metric
CROSS JOIN LATERAL (
    SELECT count(*) AS arms, COALESCE(bool_or(arm.id = :base), false) AS base
    FROM affinity a JOIN arm ON arm.id = a.adapter_id AND arm.version = a.adapter_version
    WHERE a.tenant = t.tenant AND a.task_id = t.id AND a.task_version = t.version AND a.metric = v.metric
      AND a.metric_version = known.version AND a.prompt_digest = v.prompt_digest
      AND (CAST(:since AS timestamptz) IS NULL OR a.measure_time >= CAST(:since AS timestamptz))
) AS there
WHERE t.tenant = :tenant AND t.pool = :pool AND v.example_count > 0 AND there.arms < CAST(:count AS int)
  AND (CAST(:tasks AS text[]) IS NULL OR t.id = ANY(CAST(:tasks AS text[])))
ORDER BY t.id
""")


@dataclass(frozen=True, slots=True)
class Lack:
    """A task, and how many arms it lacks; without the base routing cannot use it at all."""

    task_id: str
    state: str
    example_count: int
    arms: int
    lacks_base: bool


def read_arms(session: Session, tenant: str, pool_id: str) -> list[Arm]:
    """Returns what is measured of a pool: adapters' versions by id, the base last."""
    versions: dict[str, dict[int, str]] = defaultdict(dict)
    aliases: dict[str, dict[str, int]] = {}
    for row in session.connection().execute(_ACTIVE, {"tenant": tenant, "pool": pool_id}):
        versions[row.id][row.version] = row.digest
        aliases[row.id] = row.aliases
    arms = [
        Arm(adapter_id, version, digests[version])
        for adapter_id, digests in versions.items()
        for version in matched_versions(aliases[adapter_id], list(digests))
    ]
    return [*sorted(arms), BASE_ARM]


def read_lacking(
    session: Session,
    tenant: str,
    pool_id: str,
    arms: Sequence[Arm],
    task_ids: Collection[str] = (),
    since: datetime | None = None,
) -> list[Lack]:
    """Returns the tasks, of those named or all, that lack an affinity of any of ``arms``.

    An affinity counts if it is of the current task version, metric version and prompt digest, and not
    older than ``since``. Tasks without examples or of an unknown metric lack nothing.
    """
    metrics = _metric_versions(session, tenant, pool_id)
    values = {
        "tenant": tenant,
        "pool": pool_id,
        "ids": [arm.adapter_id for arm in arms],
        "versions": [arm.version for arm in arms],
        "count": len(arms),
        "metrics": list(metrics),
        "metric_versions": list(metrics.values()),
        "tasks": list(task_ids) or None,
        "since": since,
        "base": BASE,
    }
    return [Lack(*row) for row in session.connection().execute(_LACKING, values)]


def _metric_versions(session: Session, tenant: str, pool_id: str) -> dict[str, int]:
    versions = {}
    names = session.connection().execute(_METRICS, {"tenant": tenant, "pool": pool_id}).scalars()
    for name in names:
        try:
            versions[name] = metric(name).version
        except LorauterError:
            _log.error("worker.task.metric_unknown", pool=pool_id, metric=name)
    return versions
