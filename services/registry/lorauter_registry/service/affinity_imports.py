"""What the affinities of an import may refer to, and the rows that they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import MetaData, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session

from lorauter.errors import InvalidArgument, NotFound
from lorauter.identifiers import BASE
from lorauter.metrics import metric
from lorauter.store import tables
from lorauter_registry.domain.affinity_requests import AffinityInput
from lorauter_registry.service.base import missing

_TABLE = tables.Affinity.metadata.tables["affinity"]
_INCOMING = _TABLE.to_metadata(MetaData(), name="incoming")
_NAMES = _TABLE.columns.keys()
KEY = tuple(_TABLE.primary_key.columns.keys())
"""The columns by which an affinity is known."""

_GIVEN = (
    "count",
    "standard_error",
    "round",
    "judged_score",
    "judged_count",
    "lift",
    "lift_error",
    "likelihood",
    "place",
)


@contextmanager
def copying(session: Session) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Lends a function that takes a row by name, unique by KEY; in the end all rows replace old ones.

    They stream into a table of the transaction's own, several times as fast as inserts.
    """
    session.execute(text("CREATE TEMPORARY TABLE incoming (LIKE affinity) ON COMMIT DROP"))
    connection = session.connection().connection.driver_connection
    assert connection is not None
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY incoming ({', '.join(map(str, _NAMES))}) FROM STDIN") as copy,
    ):
        yield lambda row: copy.write_row([row[name] for name in _NAMES])
    merge = insert(_TABLE).from_select(_NAMES, select(*(_INCOMING.columns[name] for name in _NAMES)))
    changed = {name: merge.excluded[name] for name in _NAMES if name not in KEY}
    session.execute(merge.on_conflict_do_update(index_elements=KEY, set_=changed))


@dataclass(frozen=True, slots=True)
class Known:
    """Tasks and adapters of a tenant, as of one write."""

    tenant: str
    now: datetime
    tasks: Mapping[str, tables.Task]
    task_versions: Mapping[tuple[str, int], tables.TaskVersion]
    adapter_pools: Mapping[str, str]
    served: Mapping[str, int]
    """The version that 0 means, by adapter."""
    adapter_versions: set[tuple[str, int]]

    def row(self, value: AffinityInput, place: int) -> dict[str, Any]:
        """Returns the row of the affinity at ``place``.

        Raises NotFound (TASK_NOT_FOUND, TASK_VERSION_NOT_FOUND, ADAPTER_NOT_FOUND,
        ADAPTER_VERSION_NOT_FOUND) or InvalidArgument (POOL_MISMATCH, TASK_WITHOUT_EXAMPLES,
        METRIC_MISMATCH, PROMPT_MISMATCH), naming the place.
        """
        task = self.tasks.get(value.task_id)
        if task is None:
            raise _at(place, missing("task", value.task_id))
        if value.pool and value.pool != task.pool:
            raise invalid(place, "POOL_MISMATCH", f"task {task.id!r} is of pool {task.pool!r}")
        version = self._task_version(value, task, place)
        return {
            "tenant": self.tenant,
            "task_id": task.id,
            "task_version": version.version,
            "adapter_id": value.adapter_id,
            "adapter_version": self._adapter_version(value, task.pool, place),
            "metric": version.metric,
            "metric_version": _checked_metric_version(value, version, place),
            "prompt_digest": version.prompt_digest,
            "score": value.score,
            "shrunk_score": value.score if value.shrunk_score is None else value.shrunk_score,
            "eligible": value.adapter_id != BASE if value.eligible is None else value.eligible,
            "imported": True,
            "measure_time": self.now if value.measure_time is None else min(value.measure_time, self.now),
            **{name: getattr(value, name) for name in _GIVEN},
        }

    def _task_version(self, value: AffinityInput, task: tables.Task, place: int) -> tables.TaskVersion:
        number = value.task_version or task.version
        if number == 0:
            raise invalid(place, "TASK_WITHOUT_EXAMPLES", f"task {task.id!r} has no validation set yet")
        version = self.task_versions.get((task.id, number))
        if version is None:
            raise _at(place, missing("task version", f"{task.id} version {number}"))
        return version

    def _adapter_version(self, value: AffinityInput, pool: str, place: int) -> int:
        if value.adapter_id == BASE:
            return 0
        if value.adapter_id not in self.adapter_pools:
            raise _at(place, missing("adapter", value.adapter_id))
        if self.adapter_pools[value.adapter_id] != pool:
            raise invalid(place, "POOL_MISMATCH", f"adapter {value.adapter_id!r} is not of pool {pool!r}")
        number = value.adapter_version or self.served[value.adapter_id]
        if (value.adapter_id, number) not in self.adapter_versions:
            raise _at(place, missing("adapter version", f"{value.adapter_id} version {number}"))
        return number


def _checked_metric_version(value: AffinityInput, version: tables.TaskVersion, place: int) -> int:
    """Returns the metric's version, once all that says how the score was measured is the task's."""
    current = metric(version.metric).version
    given = value.metric or version.metric, value.metric_version or current
    if given != (version.metric, current):
        raise invalid(
            place,
            "METRIC_MISMATCH",
            f"the score is of metric {given[0]} version {given[1]}, the task's is {version.metric} "
            f"version {current}: measure again",
        )
    if value.prompt_digest and value.prompt_digest != version.prompt_digest:
        raise invalid(
            place,
            "PROMPT_MISMATCH",
            "the score was measured with another prompt or other generation settings: measure again",
        )
    return current


def _at(place: int, error: NotFound) -> NotFound:
    metadata = {**error.metadata, "field": f"affinities[{place}]"}
    return NotFound(error.reason, f"affinities[{place}]: {error.message}; nothing was imported", **metadata)


def invalid(place: int, reason: str, message: str) -> InvalidArgument:
    """Returns the error for the affinity at ``place``."""
    return InvalidArgument(
        reason, f"affinities[{place}]: {message}; nothing was imported", field=f"affinities[{place}]"
    )
