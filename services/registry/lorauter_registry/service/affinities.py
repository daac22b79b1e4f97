"""Affinities: what was measured, and what is imported as measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from lorauter.errors import InvalidArgument, NotFound
from lorauter.identifiers import BASE, encode_generation
from lorauter.metrics import metric
from lorauter.store import Write, tables
from lorauter_registry.domain.adapter_requests import AffinityInput, ImportAffinities, ListAffinities
from lorauter_registry.domain.answers import AffinityList, ImportedAffinities
from lorauter_registry.domain.resources import Affinity
from lorauter_registry.service.adapters import Adapters
from lorauter_registry.service.base import missing
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import affinity_of

_TABLE = tables.Affinity.metadata.tables["affinity"]


class Affinities(Adapters):
    """Adapters, and what was measured about them."""

    def list_affinities(self, request: ListAffinities) -> AffinityList:
        """Lists the affinities of current task versions, by task and adapter.

        Raises NotFound (POOL_NOT_FOUND, TASK_NOT_FOUND).
        """
        affinity, task = tables.Affinity, tables.Task
        statement = (
            select(affinity)
            .join(
                task,
                (col(task.tenant) == affinity.tenant)
                & (col(task.id) == affinity.task_id)
                & (col(task.version) == affinity.task_version),
            )
            .where(affinity.tenant == self.tenant)
        )
        with self.reading() as session:
            if request.pool:
                self.existing(session, tables.Pool, "pool", request.pool)
                statement = statement.where(task.pool == request.pool)
            if request.task_id:
                self.existing(session, tables.Task, "task", request.task_id)
                statement = statement.where(affinity.task_id == request.task_id)
            if request.adapter_id:
                statement = statement.where(affinity.adapter_id == request.adapter_id)
            affinities, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(affinity.task_id), col(affinity.adapter_id), col(affinity.adapter_version)],
                lambda rows: self._with_pools(session, rows),
            )
        return AffinityList(affinities=affinities, next_page_token=token)

    def import_affinities(self, request: ImportAffinities) -> ImportedAffinities:
        """Imports measured scores, all of them or none; one that exists is replaced.

        Metric, metric version and prompt digest are those of the task's version. A task that was only
        embedded counts as matched from then on. Raises NotFound (TASK_NOT_FOUND, ADAPTER_NOT_FOUND and
        those of versions) or InvalidArgument (POOL_MISMATCH, TASK_WITHOUT_EXAMPLES, DUPLICATE_AFFINITY),
        naming the place.
        """

        def change(tx: Write) -> ImportedAffinities:
            known = self._known(tx, request.affinities)
            rows = [known.row(value, place, tx) for place, value in enumerate(request.affinities)]
            _check_unique(rows)
            statement = insert(_TABLE)
            keys = [column.name for column in _TABLE.primary_key.columns]
            values = {name: statement.excluded[name] for name in rows[0] if name not in keys}
            upsert = statement.on_conflict_do_update(index_elements=keys, set_=values)
            tx.session.execute(upsert, rows)
            for task in known.tasks.values():
                if task.state == "EMBEDDED" and any(
                    row["task_id"] == task.id and row["task_version"] == task.version for row in rows
                ):
                    task.state = "MATCHED"
            for pool in sorted({task.pool for task in known.tasks.values()}):
                tx.owe("index", pool)
            return ImportedAffinities(imported_count=len(rows), generation=encode_generation(tx.generation))

        return self.changing(request, ImportedAffinities, change)

    def _with_pools(self, session: Session, rows: Sequence[tables.Affinity]) -> list[Affinity]:
        ids = {row.task_id for row in rows}
        task = tables.Task
        statement = select(task.id, task.pool).where(task.tenant == self.tenant, col(task.id).in_(ids))
        pools = dict(session.exec(statement).all())
        return [affinity_of(row, pools[row.task_id]) for row in rows]

    def _known(self, tx: Write, affinities: Iterable[AffinityInput]) -> _Known:
        task_ids = {value.task_id for value in affinities}
        adapter_ids = {value.adapter_id for value in affinities} - {BASE}
        task, version, adapter = tables.Task, tables.TaskVersion, tables.Adapter
        locked = (
            select(task)
            .where(task.tenant == self.tenant, col(task.id).in_(task_ids))
            .order_by(col(task.id))
            .with_for_update()
        )
        versions = select(version).where(version.tenant == self.tenant, col(version.task_id).in_(task_ids))
        adapters = select(adapter).where(adapter.tenant == self.tenant, col(adapter.id).in_(adapter_ids))
        found = tx.session.exec(adapters).all()
        number = tables.AdapterVersion
        numbers = select(number.adapter_id, number.version).where(
            number.tenant == self.tenant, col(number.adapter_id).in_(adapter_ids)
        )
        shown = self.shown(tx.session, found, datetime.now(UTC)) if found else []
        return _Known(
            tasks={row.id: row for row in tx.session.exec(locked)},
            task_versions={(row.task_id, row.version): row for row in tx.session.exec(versions)},
            adapter_pools={row.id: row.pool for row in found},
            served={one.id: one.served_version or one.latest.version for one in shown},
            adapter_versions=set(tx.session.exec(numbers).all()) if adapter_ids else set(),
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """What the affinities of one import may refer to."""

    tasks: Mapping[str, tables.Task]
    task_versions: Mapping[tuple[str, int], tables.TaskVersion]
    adapter_pools: Mapping[str, str]
    served: Mapping[str, int]
    adapter_versions: set[tuple[str, int]]

    def row(self, value: AffinityInput, place: int, tx: Write) -> dict[str, Any]:
        """Returns the row of an imported affinity; raises NotFound or InvalidArgument."""
        task = self.tasks.get(value.task_id)
        if task is None:
            raise _at(place, missing("task", value.task_id))
        if value.pool and value.pool != task.pool:
            raise _invalid(place, "POOL_MISMATCH", f"task {task.id!r} is of pool {task.pool!r}")
        number = value.task_version or task.version
        if number == 0:
            raise _invalid(place, "TASK_WITHOUT_EXAMPLES", f"task {task.id!r} has no validation set yet")
        version = self.task_versions.get((task.id, number))
        if version is None:
            raise _at(place, missing("task version", f"{task.id} version {number}"))
        return {
            "tenant": tx.tenant,
            "task_id": task.id,
            "task_version": number,
            "adapter_id": value.adapter_id,
            "adapter_version": self._adapter_version(value, task.pool, place),
            "metric": version.metric,
            "metric_version": metric(version.metric).version,
            "prompt_digest": version.prompt_digest,
            "score": value.score,
            "count": value.count,
            "standard_error": value.standard_error,
            "round": value.round,
            "imported": True,
            "measure_time": tx.now,
        }

    def _adapter_version(self, value: AffinityInput, pool: str, place: int) -> int:
        if value.adapter_id == BASE:
            if value.adapter_version:
                raise _invalid(place, "INVALID_FIELD", "the base has adapter_version 0")
            return 0
        if value.adapter_id not in self.adapter_pools:
            raise _at(place, missing("adapter", value.adapter_id))
        if self.adapter_pools[value.adapter_id] != pool:
            raise _invalid(place, "POOL_MISMATCH", f"adapter {value.adapter_id!r} is not of pool {pool!r}")
        number = value.adapter_version or self.served[value.adapter_id]
        if (value.adapter_id, number) not in self.adapter_versions:
            raise _at(place, missing("adapter version", f"{value.adapter_id} version {number}"))
        return number


def _check_unique(rows: Sequence[dict[str, Any]]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for place, row in enumerate(rows):
        key = (row["task_id"], row["task_version"], row["adapter_id"], row["adapter_version"])
        if key in seen:
            raise _invalid(place, "DUPLICATE_AFFINITY", "task and adapter stand in the import twice")
        seen.add(key)


def _at(place: int, error: NotFound) -> NotFound:
    return NotFound(
        error.reason, f"affinities[{place}]: {error.message}", field=f"affinities[{place}]", **error.metadata
    )


def _invalid(place: int, reason: str, message: str) -> InvalidArgument:
    return InvalidArgument(
        reason, f"affinities[{place}]: {message}; nothing was imported", field=f"affinities[{place}]"
    )
