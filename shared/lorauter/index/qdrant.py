"""The index on Qdrant: a server, the embedded index process, or qdrant-client's local mode.

These are all the REST calls that it makes, through the official client; whoever stands in for Qdrant
serves exactly them::

    GET  /collections/{name}/exists
    PUT  /collections/{name}                             vectors {} | {"dense"}, sparse_vectors {"lexical"}
    PUT  /collections/{name}/index?wait=true             keyword and integer payload fields
    GET  /aliases
    POST /collections/aliases                            create_alias, delete_alias
    PUT  /collections/{name}/points?wait=true            points, update_filter (range on `generation`)
    POST /collections/{name}/points                      by ids; with_payload, with_vector
    POST /collections/{name}/points/count                exact; filter: match value and any, range, has_id
    POST /collections/{name}/points/delete?wait=true     the same filters

An absent collection is answered 404 with ``{"status": {"error": "Not found: ..."}}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from qdrant_client import QdrantClient, models

from lorauter.errors import Unavailable
from lorauter.index import collections as layout
from lorauter.index.codec import (
    Payload,
    TaskPoint,
    Tree,
    decode,
    decode_task,
    encode,
    example_points,
    example_set_digest,
    marker_id,
    point_id,
    task_ids,
    tasks_by_id,
)
from lorauter.index.collections import DENSE, LEXICAL, Collections, reachable
from lorauter.index.memory import index_empty
from lorauter.index.port import ExampleSet, IndexCheck, PublishReport
from lorauter.routing.model import Snapshot, Task

READ_ATTEMPTS = 5
"""How often a read starts again because publishing overtook it."""


class QdrantIndex:
    """A SnapshotIndex on Qdrant. See SnapshotIndex for the contract.

    ``source`` is a server's URL or a client. ``prefix`` begins every collection's and alias's name, so
    that several suites can share a server. Not to be shared with forked children.
    """

    def __init__(
        self, source: str | QdrantClient, timeout_seconds: float = 10.0, *, prefix: str = ""
    ) -> None:
        self._client = (
            QdrantClient(
                url=source, timeout=math.ceil(timeout_seconds), check_compatibility=False, trust_env=False
            )
            if isinstance(source, str)
            else source
        )
        self._prefix = prefix
        self._profiles = layout.profiles_collection(prefix)
        self._tasks: dict[str, dict[str, Task]] = {}

    def published(self, tenant: str) -> tuple[int, str] | None:
        """See SnapshotIndex."""
        try:
            marker = self._payload(marker_id(tenant))
        except Unavailable as error:
            if layout.is_absent(error):
                return None
            raise
        return None if marker is None else (int(marker["generation"]), str(marker["root"]))

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

    def publish(self, snapshot: Snapshot, examples: Sequence[ExampleSet]) -> PublishReport:
        """See SnapshotIndex."""
        tree = encode(snapshot)
        names = Collections.of(self._prefix, snapshot.encoder_digest)
        has_vectors = bool(tree.tasks)
        with reachable():
            layout.ensure(self._client, names, _dimension(tree))
            written = self._write_tasks(names, snapshot, tree) if has_vectors else 0
            written += self._write_examples(names, snapshot, examples) if has_vectors else 0
            written += self._write_root(snapshot, tree)
            moved = self._move_marker(snapshot, tree)
            deleted = 0
            if moved:
                layout.point_aliases(self._client, self._prefix, names)
                deleted = self._delete_unreachable(names, snapshot, tree, examples)
                written += self._write_tasks(names, snapshot, tree) if has_vectors else 0
        return PublishReport(tree.digest, written, deleted, moved)

    def verify(self, snapshot: Snapshot, examples: Sequence[ExampleSet]) -> IndexCheck:
        """See SnapshotIndex."""
        tree = encode(snapshot)
        current = self.published(snapshot.tenant) == (snapshot.generation, tree.digest)
        names = Collections.of(self._prefix, snapshot.encoder_digest)
        expected = 1 + len(tree.tasks) + sum(len(part.vectors) for part in examples)
        try:
            with reachable():
                found = len(layout.present(self._client, self._profiles, [tree.root_id]))
                if tree.tasks:
                    found += len(layout.present(self._client, names.tasks, list(tree.tasks)))
                    found += self._count_examples(names, _sets(snapshot, examples))
        except Unavailable as error:
            if not layout.is_absent(error):
                raise
            found = 0
        return IndexCheck(current, expected - found)

    def close(self) -> None:
        """See SnapshotIndex."""
        self._client.close()

    def _payload(self, id_: str) -> Payload | None:
        with reachable():
            records = self._client.retrieve(self._profiles, [id_], with_payload=True)
        return records[0].payload if records else None

    def _read_root(self, tenant: str, digest: str, held: Snapshot | None) -> Snapshot | None:
        """Returns the snapshot of a root, or None if the root or some of its points are gone."""
        root = self._payload(point_id(digest))
        if root is None:
            return None
        if tenant not in self._tasks and held is not None:
            self._tasks[tenant] = tasks_by_id(held)
        known = self._tasks.get(tenant, {})
        wanted = task_ids(root)
        tasks = {id_: known[id_] for id_ in wanted if id_ in known}
        names = Collections.of(self._prefix, root["encoder_digest"])
        try:
            for record in self._fetch(names.tasks, [id_ for id_ in wanted if id_ not in known]):
                tasks[str(record.id)] = _task_of(record)
        except Unavailable as error:
            if not layout.is_absent(error):
                raise
        if len(tasks) < len(wanted):
            return None
        self._tasks[tenant] = tasks
        return decode(root, digest, tasks)

    def _fetch(self, collection: str, ids: Sequence[str]) -> Iterator[models.Record]:
        for batch in layout.in_batches(ids, layout.POINT_BATCH):
            with reachable():
                records = self._client.retrieve(collection, batch, with_payload=True, with_vectors=True)
            yield from records

    def _write_tasks(self, names: Collections, snapshot: Snapshot, tree: Tree) -> int:
        held = layout.present(self._client, names.tasks, list(tree.tasks))
        points = [_task_point(p, snapshot.generation) for id_, p in tree.tasks.items() if id_ not in held]
        self._upsert(names.tasks, points)
        return len(points)

    def _write_examples(self, names: Collections, snapshot: Snapshot, examples: Sequence[ExampleSet]) -> int:
        """Writes the sets whose last point, written last, is missing; all incomplete ones if any is."""
        sets = _sets(snapshot, examples)
        last = {
            point_id(f"{digest}:{len(part.vectors) - 1}"): digest
            for digest, part in sets.items()
            if len(part.vectors)
        }
        held = {last[id_] for id_ in layout.present(self._client, names.examples, list(last))}
        written = sum(
            self._write_set(names, snapshot, part) for digest, part in sets.items() if digest not in held
        )
        if self._count_examples(names, sets) != sum(len(part.vectors) for part in sets.values()):
            written += sum(
                self._write_set(names, snapshot, part)
                for digest, part in sets.items()
                if self._count_examples(names, {digest: part}) != len(part.vectors)
            )
        return written

    def _write_set(self, names: Collections, snapshot: Snapshot, part: ExampleSet) -> int:
        points = [
            models.PointStruct(
                id=id_,
                vector={DENSE: vector.astype(float).tolist()},
                payload={**payload, "generation": snapshot.generation},
            )
            for id_, payload, vector in example_points(snapshot.tenant, part)
        ]
        self._upsert(names.examples, points)
        return len(points)

    def _count_examples(self, names: Collections, sets: dict[str, ExampleSet]) -> int:
        if not sets:
            return 0
        chosen = models.Filter(must=[_match_any("set", list(sets))])
        return self._client.count(names.examples, count_filter=chosen, exact=True).count

    def _write_root(self, snapshot: Snapshot, tree: Tree) -> int:
        if layout.present(self._client, self._profiles, [tree.root_id]):
            return 0
        self._upsert(self._profiles, [models.PointStruct(id=tree.root_id, vector={}, payload=tree.root)])
        return 1

    def _move_marker(self, snapshot: Snapshot, tree: Tree) -> bool:
        marker = models.PointStruct(
            id=marker_id(snapshot.tenant),
            vector={},
            payload={"tenant": snapshot.tenant, "generation": snapshot.generation, "root": tree.digest},
        )
        self._client.upsert(
            self._profiles,
            [marker],
            wait=True,
            ordering=models.WriteOrdering.STRONG,
            update_filter=models.Filter(must=[_up_to(snapshot.generation)]),
        )
        return self._is_published(snapshot, tree)

    def _is_published(self, snapshot: Snapshot, tree: Tree) -> bool:
        return self.published(snapshot.tenant) == (snapshot.generation, tree.digest)

    def _delete_unreachable(
        self, names: Collections, snapshot: Snapshot, tree: Tree, examples: Sequence[ExampleSet]
    ) -> int:
        """Deletes points of this and older generations that the published root does not name.

        Points of newer generations are left: their publisher has not moved the marker yet.
        """
        if not self._is_published(snapshot, tree):
            return 0
        has_id = models.HasIdCondition(has_id=[tree.root_id, marker_id(snapshot.tenant)])
        deleted = self._delete(self._profiles, snapshot, has_id)
        if self._client.collection_exists(names.tasks):
            deleted += self._delete(names.tasks, snapshot, models.HasIdCondition(has_id=list(tree.tasks)))
        if self._client.collection_exists(names.examples):
            kept = _match_any("set", list(_sets(snapshot, examples)))
            deleted += self._delete(names.examples, snapshot, kept)
        return deleted

    def _delete(self, collection: str, snapshot: Snapshot, kept: models.Condition) -> int:
        tenant = models.FieldCondition(key="tenant", match=models.MatchValue(value=snapshot.tenant))
        chosen = models.Filter(must=[tenant, _up_to(snapshot.generation)], must_not=[kept])
        count = self._client.count(collection, count_filter=chosen, exact=True).count
        if count:
            self._client.delete(collection, models.FilterSelector(filter=chosen), wait=True)
        return count

    def _upsert(self, collection: str, points: list[models.PointStruct]) -> None:
        for start in range(0, len(points), layout.POINT_BATCH):
            self._client.upsert(collection, points[start : start + layout.POINT_BATCH], wait=True)


def _sets(snapshot: Snapshot, examples: Sequence[ExampleSet]) -> dict[str, ExampleSet]:
    return {example_set_digest(snapshot.tenant, part): part for part in examples}


def _dimension(tree: Tree) -> int | None:
    return next((len(point.centroid) for point in tree.tasks.values()), None)


def _task_point(point: TaskPoint, generation: int) -> models.PointStruct:
    vector: dict[str, models.Vector] = {DENSE: point.centroid.astype(float).tolist()}
    if point.terms:
        vector[LEXICAL] = models.SparseVector(indices=list(point.terms), values=list(point.terms.values()))
    return models.PointStruct(id=point.id, vector=vector, payload={**point.payload, "generation": generation})


def _task_of(record: models.Record) -> Task:
    assert record.payload is not None
    assert isinstance(record.vector, dict)
    lexical = record.vector.get(LEXICAL)
    terms: dict[int, float] = {}
    if isinstance(lexical, models.SparseVector):
        values = np.asarray(lexical.values, dtype=np.float32).tolist()
        terms = dict(zip(lexical.indices, values, strict=True))
    return decode_task(record.payload, np.asarray(record.vector[DENSE], dtype=np.float32), terms)


def _up_to(generation: int) -> models.FieldCondition:
    return models.FieldCondition(key="generation", range=models.Range(lte=generation))


def _match_any(key: str, values: list[str]) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchAny(any=values))
