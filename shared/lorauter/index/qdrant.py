"""The index on Qdrant: a server, the embedded index process, or qdrant-client's local mode.

These are all the REST calls that it makes, through the official client; whoever stands in for Qdrant
serves exactly them::

    GET  /collections/{name}/exists
    PUT  /collections/{name}                             vectors {} | {"dense"}, sparse_vectors {"lexical"}
    PUT  /collections/{name}/index?wait=true             keyword and integer payload fields
    GET  /collections
    DEL  /collections/{name}
    GET  /aliases
    POST /collections/aliases                            create_alias, delete_alias
    PUT  /collections/{name}/points?wait=true            points, update_filter (range, match value)
    POST /collections/{name}/points                      by ids; with_payload, with_vector
    POST /collections/{name}/points/scroll               with_payload; filter: match value
    POST /collections/{name}/points/query/batch          dense and sparse; filter: match value, must_not any
    POST /collections/{name}/points/count                exact; filter: match value and any, range, has_id
    POST /collections/{name}/points/delete?wait=true     the same filters
    POST /collections/{name}/points/payload?wait=true    set `generation`; filter: match any, has_id, range

An absent collection is answered 404 with ``{"status": {"error": "Not found: ..."}}``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from qdrant_client import QdrantClient, models

from lorauter.errors import Unavailable
from lorauter.failpoints import reach
from lorauter.index import collections as layout
from lorauter.index.codec import (
    MARKER,
    Parts,
    Payload,
    Tree,
    decode,
    decode_scatter,
    decode_task,
    encode,
    marker_id,
    parts_of,
    point_id,
    scatter_ids,
    task_ids,
)
from lorauter.index.collections import DENSE, LEXICAL, Collections, reachable
from lorauter.index.connecting import connect
from lorauter.index.memory import index_empty
from lorauter.index.port import ExampleSet, Found, IndexCheck, PublishReport, Search
from lorauter.index.qdrant_search import search_tasks
from lorauter.index.qdrant_writer import SnapshotWriter, of_tenant
from lorauter.routing.bm25 import NO_TERMS, Terms
from lorauter.routing.model import Snapshot, Task
from lorauter.routing.whitening import Packed

READ_ATTEMPTS = 5
"""How often a read starts again because publishing overtook it."""

PUBLISH_ATTEMPTS = 5
"""How often a publishing starts again because one of an older or the same generation came between."""


class QdrantIndex:
    """A SnapshotIndex on Qdrant. See SnapshotIndex for the contract.

    ``source`` is a server's URL or a client. ``prefix`` begins every collection's and alias's name, so
    that several suites can share a server. Not to be shared with forked children.
    """

    def __init__(
        self, source: str | QdrantClient, timeout_seconds: float = 10.0, *, prefix: str = ""
    ) -> None:
        self._client = connect(source, timeout_seconds) if isinstance(source, str) else source
        self._prefix = prefix
        self._profiles = layout.profiles_collection(prefix)
        self._held: dict[str, Parts] = {}
        self._unused_since: dict[str, float] = {}

    def published(self, tenant: str) -> tuple[int, str] | None:
        """See SnapshotIndex."""
        try:
            marker = self._payload(marker_id(tenant))
        except Unavailable as error:
            if layout.is_absent(error):
                return None
            raise
        return None if marker is None else (int(marker["generation"]), str(marker["root"]))

    def carrier(self, tenant: str) -> Mapping[str, str]:
        """See SnapshotIndex."""
        marker = self._payload(marker_id(tenant)) or {}
        return {name: str(marker[name]) for name in ("traceparent", "tracestate") if name in marker}

    def markers(self, tenants: Sequence[str] = ()) -> Mapping[str, tuple[int, str]]:
        """See SnapshotIndex."""
        try:
            with reachable():
                found = list(self._named_markers(tenants) if tenants else self._all_markers())
        except Unavailable as error:
            if layout.is_absent(error):
                return {}
            raise
        payloads = (record.payload for record in found if record.payload is not None)
        return {str(each["tenant"]): (int(each["generation"]), str(each["root"])) for each in payloads}

    def read(self, tenant: str, held: Snapshot | None = None) -> Snapshot:
        """See SnapshotIndex.

        Root and points are immutable and addressed by content, so a complete set of them is one
        generation whatever the marker does meanwhile; only an incomplete one means starting again.
        """
        marker = self.published(tenant)
        for _ in range(READ_ATTEMPTS):
            if marker is None:
                raise index_empty(tenant)
            digest = marker[1]
            if held is not None and held.digest == digest:
                return held
            snapshot = self._read_root(tenant, digest, held)
            if snapshot is not None:
                return snapshot
            before, marker = marker, self.published(tenant)
            if marker == before:
                break
        raise Unavailable(
            "INDEX_INCOMPLETE",
            f"the index lacks points of tenant {tenant!r}: the worker repairs it; retry in a few seconds",
        )

    def publish(
        self, snapshot: Snapshot, examples: Sequence[ExampleSet], *, thorough: bool = False
    ) -> PublishReport:
        """See SnapshotIndex."""
        tree = encode(snapshot)
        names = Collections.of(self._prefix, snapshot.encoder_digest)
        with reachable():
            layout.ensure(self._client, names, _dimension(tree))
            written = 0
            for _ in range(PUBLISH_ATTEMPTS):
                marker = self.published(snapshot.tenant)
                digest = marker[1] if marker is not None else ""
                root = self._payload(point_id(digest))
                writer = SnapshotWriter(self._client, names, snapshot, tree, examples, digest, root)
                written += writer.write_tasks() + writer.write_examples(thorough)
                written += writer.write_scatters()
                reach("upsert")
                written += writer.write_root()
                writer.move_marker()
                marker = self.published(snapshot.tenant)
                if marker == (snapshot.generation, tree.digest):
                    layout.point_aliases(self._client, self._prefix, names)
                    deleted = writer.delete_unreachable() if thorough else writer.delete_replaced()
                    return PublishReport(tree.digest, written, deleted, moved=True)
                if marker is not None and marker[0] > snapshot.generation:
                    return PublishReport(tree.digest, written, 0, moved=False)
        raise Unavailable(
            "INDEX_CONTENDED", f"others publish tenant {snapshot.tenant!r} all the time: retry in a second"
        )

    def verify(self, snapshot: Snapshot, examples: Sequence[ExampleSet]) -> IndexCheck:
        """See SnapshotIndex."""
        tree = encode(snapshot)
        names = Collections.of(self._prefix, snapshot.encoder_digest)
        writer = SnapshotWriter(self._client, names, snapshot, tree, examples)
        tenant = snapshot.tenant
        size = sum(writer.set_sizes.values())
        current = self._is_published(snapshot, tree)
        with reachable():
            named = [tree.root_id, *tree.scatters]
            profiles = len(self._present(names.profiles, named))
            tasks = len(self._present(names.tasks, list(tree.tasks)))
            held = self._count(names.examples, tenant)
            found = size if held == size else writer.count_examples() if held else 0
            surplus = held - found + self._count(names.tasks, tenant) - tasks
            surplus += self._count(names.profiles, tenant) - profiles - (self.published(tenant) is not None)
        missing = len(named) - profiles + len(tree.tasks) - tasks + size - found
        return IndexCheck(current, missing, surplus)

    def search(self, wanted: Search) -> Found:
        """See SnapshotIndex."""
        names = Collections.of(self._prefix, wanted.encoder_digest)
        try:
            with reachable():
                tasks = search_tasks(self._client, names.tasks, wanted)
        except Unavailable as error:
            if layout.is_absent(error) and self.published(wanted.tenant) is None:
                raise index_empty(wanted.tenant) from None
            raise
        marker = self.published(wanted.tenant)  # last: what it names was there all the time
        if marker is None:
            raise index_empty(wanted.tenant)
        return Found(marker[1], tasks)

    def drop_former(self, unused_seconds: float) -> int:
        """See SnapshotIndex."""
        now = time.monotonic()
        with reachable():
            unused = layout.of_encoders(self._client, self._prefix) - self._used()
            self._unused_since = {name: self._unused_since.get(name, now) for name in unused}
            former = [name for name, since in self._unused_since.items() if now - since >= unused_seconds]
            for name in former:
                self._client.delete_collection(name)
        return len(former)

    def clear(self, tenant: str) -> None:
        """See SnapshotIndex."""
        chosen = models.FilterSelector(filter=models.Filter(must=[of_tenant(tenant)]))
        with reachable():
            held = {alias.alias_name for alias in self._client.get_aliases().aliases}
            for role in ("profiles", "tasks", "examples"):
                if self._prefix + role in held:
                    self._client.delete(self._prefix + role, chosen, wait=True)
        self.forget(tenant)

    def forget(self, tenant: str) -> None:
        """See SnapshotIndex."""
        self._held.pop(tenant, None)

    def close(self) -> None:
        """See SnapshotIndex."""
        self._client.close()

    def _named_markers(self, tenants: Sequence[str]) -> Iterator[models.Record]:
        for batch in layout.in_batches([marker_id(tenant) for tenant in tenants], layout.ID_BATCH):
            yield from self._client.retrieve(self._profiles, batch, with_payload=True)

    def _all_markers(self) -> Iterator[models.Record]:
        condition = models.FieldCondition(key="kind", match=models.MatchValue(value=MARKER))
        chosen = models.Filter(must=[condition])
        offset = None
        while True:
            records, offset = self._client.scroll(
                self._profiles, chosen, limit=layout.ID_BATCH, offset=offset, with_payload=True
            )
            yield from records
            if offset is None:
                return

    def _used(self) -> set[str]:
        """Returns the collections that published roots name tasks and examples of."""
        if not self._client.collection_exists(self._profiles):
            return set()
        used: set[str] = set()
        offset = None
        while True:
            records, offset = self._client.scroll(
                self._profiles, limit=layout.ID_BATCH, offset=offset, with_payload=["encoder_digest"]
            )
            digests = {str((record.payload or {}).get("encoder_digest", "")) for record in records}
            for names in (Collections.of(self._prefix, digest) for digest in digests if digest):
                used |= {names.tasks, names.examples}
            if offset is None:
                return used

    def _present(self, collection: str, ids: list[str]) -> set[str]:
        if not ids or not self._client.collection_exists(collection):
            return set()
        return layout.present(self._client, collection, ids)

    def _count(self, collection: str, tenant: str) -> int:
        if not self._client.collection_exists(collection):
            return 0
        chosen = models.Filter(must=[of_tenant(tenant)])
        return self._client.count(collection, count_filter=chosen, exact=True).count

    def _is_published(self, snapshot: Snapshot, tree: Tree) -> bool:
        return self.published(snapshot.tenant) == (snapshot.generation, tree.digest)

    def _payload(self, id_: str) -> Payload | None:
        with reachable():
            records = self._client.retrieve(self._profiles, [id_], with_payload=True)
        return records[0].payload if records else None

    def _read_root(self, tenant: str, digest: str, held: Snapshot | None) -> Snapshot | None:
        """Returns the snapshot of a root, or None if the root or some of its points are gone."""
        root = self._payload(point_id(digest))
        if root is None:
            return None
        if tenant not in self._held and held is not None:
            self._held[tenant] = parts_of(held)
        known = self._held.get(tenant, Parts({}, {}))
        parts = Parts(self._tasks_of(root, known), self._scatters_of(root, known))
        if len(parts.tasks) < len(task_ids(root)) or len(parts.scatters) < len(scatter_ids(root)):
            return None
        self._held[tenant] = parts
        return decode(root, digest, parts)

    def _tasks_of(self, root: Payload, known: Parts) -> dict[str, Task]:
        """Returns the tasks of a root that exist, by point id; fetches those that are not known."""
        wanted = task_ids(root)
        tasks = {id_: known.tasks[id_] for id_ in wanted if id_ in known.tasks}
        names = Collections.of(self._prefix, root["encoder_digest"])
        try:
            for record in self._fetch(names.tasks, [id_ for id_ in wanted if id_ not in tasks]):
                tasks[str(record.id)] = _task_of(record)
        except Unavailable as error:
            if not layout.is_absent(error):
                raise
        return tasks

    def _scatters_of(self, root: Payload, known: Parts) -> dict[str, Packed]:
        """Returns the scatters of a root that exist, by point id; fetches those that are not known."""
        found: dict[str, Packed] = {}
        for id_ in scatter_ids(root):
            if id_ in known.scatters:
                found[id_] = known.scatters[id_]
            elif (payload := self._payload(id_)) is not None:
                found[id_] = decode_scatter(payload)
        return found

    def _fetch(self, collection: str, ids: Sequence[str]) -> Iterator[models.Record]:
        for batch in layout.in_batches(ids, layout.POINT_BATCH):
            with reachable():
                records = self._client.retrieve(collection, batch, with_payload=True, with_vectors=True)
            yield from records


def _dimension(tree: Tree) -> int | None:
    return next((len(point.centroid) for point in tree.tasks.values()), None)


def _task_of(record: models.Record) -> Task:
    assert record.payload is not None
    assert isinstance(record.vector, dict)
    lexical = record.vector.get(LEXICAL)
    terms = NO_TERMS
    if isinstance(lexical, models.SparseVector):
        ids = np.asarray(lexical.indices, dtype=np.uint32)
        order = np.argsort(ids)
        terms = Terms(ids[order], np.asarray(lexical.values, dtype=np.float64)[order])
    centroid = np.asarray(record.vector[DENSE], dtype=np.float32)
    return decode_task(str(record.id), record.payload, centroid, terms)
