"""The index in memory: the twin of QdrantIndex for tests and for use without a server."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from lorauter.errors import NotFound
from lorauter.index.codec import canonical, encode, example_set_digest
from lorauter.index.port import ExampleSet, IndexCheck, PublishReport
from lorauter.routing.model import Snapshot


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

    def clear(self, tenant: str) -> None:
        """See SnapshotIndex."""
        with self._lock:
            self._snapshots.pop(tenant, None)
            self._points.pop(tenant, None)

    def close(self) -> None:
        """See SnapshotIndex."""


def index_empty(tenant: str) -> NotFound:
    """Returns the error for a tenant without a published snapshot."""
    return NotFound(
        "INDEX_EMPTY",
        f"nothing is published for tenant {tenant!r}: register a pool and wait for the worker",
        tenant=tenant,
    )


def _points(snapshot: Snapshot, examples: Sequence[ExampleSet]) -> set[str]:
    tree = encode(snapshot)
    sets = {
        f"{example_set_digest(snapshot.tenant, part)}:{position}"
        for part in examples
        for position in range(len(part.vectors))
    }
    return {tree.root_id, *tree.tasks, *tree.scatters, *sets}
