"""The index in memory: the twin of QdrantIndex for tests and for use without a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lorauter.errors import NotFound
from lorauter.index.codec import canonical, encode, example_set_digest
from lorauter.index.port import ExampleSet, Found, IndexCheck, PublishReport, Search
from lorauter.routing.model import Snapshot, Task


class MemoryIndex:
    """A SnapshotIndex that lives in this process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots: dict[str, Snapshot] = {}
        self._points: dict[str, set[str]] = {}

    def published(self, tenant: str) -> tuple[int, str] | None:
        """See SnapshotIndex."""
        snapshot = self._snapshots.get(tenant)
        return None if snapshot is None else (snapshot.generation, snapshot.digest)

    def carrier(self, tenant: str) -> Mapping[str, str]:
        """See SnapshotIndex; nothing is traced here."""
        return {}

    def markers(self, tenants: Sequence[str] = ()) -> Mapping[str, tuple[int, str]]:
        """See SnapshotIndex."""
        found = {tenant: self.published(tenant) for tenant in tenants or list(self._snapshots)}
        return {tenant: marker for tenant, marker in found.items() if marker is not None}

    def read(self, tenant: str, held: Snapshot | None = None) -> Snapshot:
        """See SnapshotIndex."""
        snapshot = self._snapshots.get(tenant)
        if snapshot is None:
            raise index_empty(tenant)
        return held if held is not None and held.digest == snapshot.digest else snapshot

    def publish(
        self, snapshot: Snapshot, examples: Sequence[ExampleSet], *, thorough: bool = False
    ) -> PublishReport:
        """See SnapshotIndex."""
        kept = canonical(snapshot)
        wanted = _points(snapshot, examples)
        with self._lock:
            newest = self._snapshots.get(snapshot.tenant)
            if newest is not None and newest.generation > snapshot.generation:
                return PublishReport(kept.digest, 0, 0, moved=False)
            before = self._points.get(snapshot.tenant, set())
            self._snapshots[snapshot.tenant] = kept
            self._points[snapshot.tenant] = wanted
        return PublishReport(kept.digest, len(wanted - before), len(before - wanted), moved=True)

    def verify(self, snapshot: Snapshot, examples: Sequence[ExampleSet]) -> IndexCheck:
        """See SnapshotIndex."""
        marker = self.published(snapshot.tenant)
        current = marker == (snapshot.generation, encode(snapshot).digest)
        held, wanted = self._points.get(snapshot.tenant, set()), _points(snapshot, examples)
        return IndexCheck(current, missing=len(wanted - held), surplus=len(held - wanted))

    def search(self, wanted: Search) -> Found:
        """See SnapshotIndex."""
        snapshot = self._snapshots.get(wanted.tenant)
        if snapshot is None:
            raise index_empty(wanted.tenant)
        pool = snapshot.pools.get(wanted.pool_id)
        is_asked = pool is not None and snapshot.encoder_digest == wanted.encoder_digest
        tasks = _taking_part(pool.tasks, wanted) if pool is not None and is_asked else []
        found = {tasks[row] for rows in _rows_found(tasks, wanted) for row in rows}
        return Found(snapshot.digest, frozenset((task.task_id, task.address) for task in found))

    def drop_former(self, unused_seconds: float) -> int:
        """See SnapshotIndex; nothing of former encoders is held here."""
        return 0

    def clear(self, tenant: str) -> None:
        """See SnapshotIndex."""
        with self._lock:
            self._snapshots.pop(tenant, None)
            self._points.pop(tenant, None)

    def forget(self, tenant: str) -> None:
        """See SnapshotIndex; readers' snapshots are the stored ones here."""

    def close(self) -> None:
        """See SnapshotIndex."""


def index_empty(tenant: str) -> NotFound:
    """Returns the error for a tenant without a published snapshot."""
    return NotFound(
        "INDEX_EMPTY",
        f"nothing is published for tenant {tenant!r}: register a pool and wait for the worker",
        tenant=tenant,
    )


def _taking_part(tasks: Sequence[Task], wanted: Search) -> list[Task]:
    return [t for t in tasks if wanted.tags <= t.tags and t.task_id not in wanted.exclude_tasks]


def _rows_found(tasks: Sequence[Task], wanted: Search) -> Iterator[list[int]]:
    """Yields the rows that each search finds."""
    if not tasks:
        return
    centroids = np.stack([task.centroid for task in tasks])
    for vector in wanted.probe.dense:
        yield np.argsort(-(centroids @ vector), kind="stable")[: wanted.limit].tolist()
    terms = wanted.probe.terms
    shared = [
        (sum(count * task.terms[term] for term, count in terms.items() if term in task.terms), row)
        for row, task in enumerate(tasks)
        if not terms.keys().isdisjoint(task.terms)
    ]
    yield [row for _, row in sorted(shared, reverse=True)[: wanted.limit]]


def _points(snapshot: Snapshot, examples: Sequence[ExampleSet]) -> set[str]:
    tree = encode(snapshot)
    sets = {
        f"{example_set_digest(snapshot.tenant, part)}:{position}"
        for part in examples
        for position in range(len(part.vectors))
    }
    return {tree.root_id, *tree.tasks, *tree.scatters, *sets}
