"""Affinities: what was measured, and what is imported as measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlmodel import Session, col, select

from lorauter.identifiers import BASE, encode_generation
from lorauter.store import Write, tables
from lorauter_registry.domain.affinity_requests import AffinityInput, ImportAffinities, ListAffinities
from lorauter_registry.domain.answers import AffinityList, ImportedAffinities
from lorauter_registry.domain.resources import Affinity
from lorauter_registry.service.adapters import Adapters
from lorauter_registry.service.affinity_imports import KEY, Known, copying, invalid
from lorauter_registry.service.base import among
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import affinity_of


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
        embedded counts as matched from then on. Raises what Known.row() raises, and InvalidArgument
        (DUPLICATE_AFFINITY), naming the place.
        """

        def change(tx: Write) -> ImportedAffinities:
            known = self._known(tx, request.affinities)
            current = self._upsert(tx, known, request.affinities)
            for task in known.tasks.values():
                if task.state == "EMBEDDED" and task.id in current:
                    task.state = "MATCHED"
            for pool in sorted({task.pool for task in known.tasks.values()}):
                tx.owe("index", pool)
            return ImportedAffinities(
                imported_count=len(request.affinities),
                generation=encode_generation(tx.generation, tx.tenant),
            )

        return self.changing(request, ImportedAffinities, change)

    def _upsert(self, tx: Write, known: Known, affinities: Sequence[AffinityInput]) -> set[str]:
        """Writes a row for each affinity; returns the tasks of whose current version there is one."""
        seen: set[tuple[Any, ...]] = set()
        current: set[str] = set()
        with copying(tx.session) as write_row:
            for place, value in enumerate(affinities):
                row = known.row(value, place)
                key = tuple(row[name] for name in KEY)
                if key in seen:
                    raise invalid(place, "DUPLICATE_AFFINITY", "task and adapter stand in the import twice")
                seen.add(key)
                if row["task_version"] == known.tasks[value.task_id].version:
                    current.add(value.task_id)
                write_row(row)
        return current

    def _with_pools(self, session: Session, rows: Sequence[tables.Affinity]) -> list[Affinity]:
        ids = {row.task_id for row in rows}
        task = tables.Task
        statement = select(task.id, task.pool).where(task.tenant == self.tenant, col(task.id).in_(ids))
        pools = dict(session.exec(statement).all())
        return [affinity_of(row, pools[row.task_id]) for row in rows]

    def _known(self, tx: Write, affinities: Iterable[AffinityInput]) -> Known:
        task_ids = {value.task_id for value in affinities}
        adapter_ids = {value.adapter_id for value in affinities} - {BASE}
        task, version, adapter = tables.Task, tables.TaskVersion, tables.Adapter
        locked = (
            select(task)
            .where(task.tenant == self.tenant, among(task.id, task_ids))
            .order_by(col(task.id))
            .with_for_update()
        )
        versions = select(version).where(version.tenant == self.tenant, among(version.task_id, task_ids))
        adapters = select(adapter).where(adapter.tenant == self.tenant, among(adapter.id, adapter_ids))
        found = tx.session.exec(adapters).all()
        number = tables.AdapterVersion
        numbers = select(number.adapter_id, number.version).where(
            number.tenant == self.tenant, among(number.adapter_id, adapter_ids)
        )
        shown = self.shown(tx.session, found, tx.now) if found else []
        return Known(
            tenant=self.tenant,
            now=tx.now,
            tasks={row.id: row for row in tx.session.exec(locked)},
            task_versions={(row.task_id, row.version): row for row in tx.session.exec(versions)},
            adapter_pools={row.id: row.pool for row in found},
            served={one.id: one.served_version or one.latest.version for one in shown},
            adapter_versions=set(tx.session.exec(numbers).all()),
        )
