"""Reads only the best of what was measured: a pool may have a million affinities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text
from sqlmodel import Session

from lorauter.identifiers import BASE

_MEASURED_TASKS = text(
    "SELECT a.adapter_id, a.adapter_version, count(*) FROM affinity a "
    "JOIN task t ON t.tenant = a.tenant AND t.id = a.task_id AND t.version = a.task_version "
    "WHERE a.tenant = :tenant AND a.adapter_id = ANY(:ids) GROUP BY 1, 2"
)
_COLUMNS = (
    "a.task_id, a.adapter_id, a.adapter_version, a.shrunk_score, a.count, a.standard_error, "
    "a.likelihood, a.imported"
)
_ORDER = (
    'shrunk_score DESC, likelihood DESC NULLS LAST, standard_error, adapter_id COLLATE "C", adapter_version'
)
_BEST = text(f"""
WITH arm AS MATERIALIZED (
    SELECT id, version FROM unnest(CAST(:ids AS text[]), CAST(:versions AS int[])) AS arm (id, version))
SELECT best.* FROM task t CROSS JOIN LATERAL (
    (SELECT {_COLUMNS} FROM affinity a JOIN arm ON arm.id = a.adapter_id AND arm.version = a.adapter_version
     WHERE a.tenant = t.tenant AND a.task_id = t.id AND a.task_version = t.version
     ORDER BY {_ORDER}
     LIMIT :most)
    UNION ALL
    (SELECT {_COLUMNS} FROM affinity a
     WHERE a.tenant = t.tenant AND a.task_id = t.id AND a.task_version = t.version AND a.adapter_id = :base)
) AS best WHERE t.tenant = :tenant AND :pool IN ('', t.pool) ORDER BY t.id, {_ORDER}
""")  # noqa: S608 - only constants are put together


def measured_tasks(session: Session, tenant: str, adapter_ids: Sequence[str]) -> dict[str, dict[int, int]]:
    """Returns on how many tasks each version of these adapters is measured."""
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    rows = session.connection().execute(_MEASURED_TASKS, {"tenant": tenant, "ids": list(adapter_ids)})
    for adapter_id, version, count in rows:
        counts[adapter_id][version] = count
    return counts


def best_affinities(
    session: Session, tenant: str, routed: Mapping[str, int], most: int, pool: str = ""
) -> Sequence[Any]:
    """Returns, for every task, the base's row and the ``most`` best of the routed versions (by adapter).

    Best first, of one pool's tasks where ``pool`` is not empty. Of equal scores the likelier comes first,
    then the surer, then by id.

    Columns: task_id, adapter_id, adapter_version, shrunk_score, count, standard_error, likelihood, imported.
    """
    values = {
        "tenant": tenant,
        "ids": list(routed),
        "versions": list(routed.values()),
        "most": most,
        "pool": pool,
        "base": BASE,
    }
    return session.connection().execute(_BEST, values).all()
