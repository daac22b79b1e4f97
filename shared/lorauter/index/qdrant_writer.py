"""Writes a snapshot's points to Qdrant, and deletes what no reader can reach.

A publisher may halt anywhere and go on late, also while it deletes; nothing that a newer root names may go
then. So every point is stamped with a generation, and a publisher deletes only what older ones stamped. What
its root names and the root that is published now does not may be about to be deleted: it is stamped anew
before it is looked for. The marker moves only from that very root, so that what both name is out of danger.
"""

from __future__ import annotations

from collections.abc import Sequence

from qdrant_client import QdrantClient, models

from lorauter import tracing
from lorauter.index import collections as layout
from lorauter.index.codec import (
    MARKER,
    Payload,
    TaskPoint,
    Tree,
    example_points,
    example_set_digest,
    marker_id,
    point_id,
    scatter_ids,
    task_ids,
)
from lorauter.index.collections import DENSE, LEXICAL, Collections
from lorauter.index.port import ExampleSet
from lorauter.routing.model import Snapshot

SETS = "sets"
"""Field of a stored root: its sets of examples with their sizes, so that the next one knows what goes."""


class SnapshotWriter:
    """Writes one snapshot. Raises what the client raises; every step may be repeated."""

    def __init__(
        self,
        client: QdrantClient,
        names: Collections,
        snapshot: Snapshot,
        tree: Tree,
        examples: Sequence[ExampleSet],
        published: str = "",
        replaced: Payload | None = None,
    ) -> None:
        """``published`` is the digest of the root that is published now, ``replaced`` what it holds."""
        self._client = client
        self._names = names
        self._snapshot = snapshot
        self._tree = tree
        self._sets = {example_set_digest(snapshot.tenant, part): part for part in examples}
        self._digest, self._replaced = published, replaced or {"pools": []}
        is_ours = names == Collections.of(names.prefix, self._replaced.get("encoder_digest", ""))
        self._named = set(task_ids(self._replaced)) if is_ours else set()
        self._named_sets: dict[str, int] = self._replaced.get(SETS, {}) if is_ours else {}
        self._named_scatters = scatter_ids(self._replaced)

    def write_tasks(self) -> int:
        """Writes the tasks that are missing; returns how many."""
        if not self._tree.tasks:
            return 0
        self._stamp_ids(self._names.tasks, [id_ for id_ in self._tree.tasks if id_ not in self._named])
        held = layout.present(self._client, self._names.tasks, list(self._tree.tasks))
        missing = [point for id_, point in self._tree.tasks.items() if id_ not in held]
        self._upsert(self._names.tasks, [self._task_point(point) for point in missing])
        return len(missing)

    def write_examples(self, thorough: bool) -> int:
        """Writes the sets whose last point, written last, is missing; returns how many points.

        Sets that the published root does not name, with ``thorough`` all sets, are counted, and written again
        where they lost points since.
        """
        if not self._tree.tasks:
            return 0
        doubtful = [set_ for set_ in self._sets if set_ not in self._named_sets]
        if doubtful:
            self._stamp(self._names.examples, match_any("set", doubtful))
        last = {_example_id(set_, size - 1): set_ for set_, size in self.set_sizes.items() if size}
        held = {last[id_] for id_ in layout.present(self._client, self._names.examples, list(last))}
        counted = list(held) if thorough else [set_ for set_ in held if set_ not in self._named_sets]
        if self.count_examples(counted) != sum(self.set_sizes[set_] for set_ in counted):
            held -= {set_ for set_ in counted if self.count_examples([set_]) != self.set_sizes[set_]}
        return sum(self._write_set(part) for set_, part in self._sets.items() if set_ not in held)

    @property
    def set_sizes(self) -> dict[str, int]:
        """The sets of examples by digest, with the number of their points."""
        return {set_: len(part.vectors) for set_, part in self._sets.items()}

    def count_examples(self, sets: list[str] | None = None) -> int:
        """Returns how many points of these sets, all of the snapshot's by default, are in the index."""
        chosen = list(self._sets) if sets is None else sets
        if not chosen:
            return 0
        condition = models.Filter(must=[match_any("set", chosen)])
        return self._client.count(self._names.examples, count_filter=condition, exact=True).count

    def write_scatters(self) -> int:
        """Writes the profiles' scatters that are missing; returns how many."""
        doubtful = [id_ for id_ in self._tree.scatters if id_ not in self._named_scatters]
        self._stamp_ids(self._names.profiles, doubtful)
        held = layout.present(self._client, self._names.profiles, list(self._tree.scatters))
        missing = {id_: payload for id_, payload in self._tree.scatters.items() if id_ not in held}
        generation = self._snapshot.generation
        points = [
            models.PointStruct(id=id_, vector={}, payload={**payload, "generation": generation})
            for id_, payload in missing.items()
        ]
        self._upsert(self._names.profiles, points)
        return len(points)

    def write_root(self) -> int:
        """Writes the root if it is missing; returns how many points that were."""
        if layout.present(self._client, self._names.profiles, [self._tree.root_id]):
            return 0
        payload = {**self._tree.root, SETS: self.set_sizes}
        root = models.PointStruct(id=self._tree.root_id, vector={}, payload=payload)
        self._upsert(self._names.profiles, [root])
        return 1

    def move_marker(self) -> None:
        """Lets the marker name this root if it still names the one before, and that is not newer."""
        tenant, generation = self._snapshot.tenant, self._snapshot.generation
        marker = models.PointStruct(
            id=marker_id(tenant),
            vector={},
            payload={
                "kind": MARKER,
                "tenant": tenant,
                "generation": generation,
                "root": self._tree.digest,
                **tracing.carrier(),
            },
        )
        with _calling("move marker", self._names.profiles, 1):
            self._client.upsert(
                self._names.profiles,
                [marker],
                wait=True,
                ordering=models.WriteOrdering.STRONG,
                update_filter=models.Filter(must=[_up_to(generation), match_value("root", self._digest)]),
            )

    def delete_replaced(self) -> int:
        """Deletes what the root that was published before named and this one does not.

        What another encoder made stays: it is the quick way back, and goes with its collections.
        """
        if self._digest in ("", self._tree.digest):
            return 0
        tasks = [id_ for id_ in self._named if id_ not in self._tree.tasks]
        old = [(set_, size) for set_, size in self._named_sets.items() if set_ not in self._sets]
        examples = [_example_id(set_, place) for set_, size in old for place in range(size)]
        scatters = [id_ for id_ in self._named_scatters if id_ not in self._tree.scatters]
        return (
            self._delete_ids(self._names.tasks, tasks)
            + self._delete_ids(self._names.examples, examples)
            + self._delete_ids(self._names.profiles, [point_id(self._digest), *scatters])
        )

    def delete_unreachable(self) -> int:
        """Deletes all points of this and older generations that this root does not name.

        Looks at every point. Those of newer generations are left: their publisher has not moved the
        marker yet.
        """
        kept = [self._tree.root_id, *self._tree.scatters, marker_id(self._snapshot.tenant)]
        deleted = self._delete(self._names.profiles, models.HasIdCondition(has_id=kept))
        if self._client.collection_exists(self._names.tasks):
            tasks = models.HasIdCondition(has_id=list(self._tree.tasks))
            deleted += self._delete(self._names.tasks, tasks)
        if self._client.collection_exists(self._names.examples):
            deleted += self._delete(self._names.examples, match_any("set", list(self._sets)))
        return deleted

    def _stamp_ids(self, collection: str, ids: Sequence[str]) -> None:
        for batch in layout.in_batches(ids, layout.ID_BATCH):
            self._stamp(collection, models.HasIdCondition(has_id=batch))

    def _stamp(self, collection: str, chosen: models.Condition) -> None:
        """Keeps older publishers from deleting what is there of some points."""
        generation = self._snapshot.generation
        older = models.Filter(must=[chosen, _up_to(generation - 1)])
        self._client.set_payload(collection, {"generation": generation}, points=older, wait=True)

    def _delete_ids(self, collection: str, ids: list[str]) -> int:
        older = _up_to(self._snapshot.generation - 1)
        if ids and self._client.collection_exists(collection):
            for batch in layout.in_batches(ids, layout.ID_BATCH):
                chosen = models.Filter(must=[older, models.HasIdCondition(has_id=batch)])
                self._client.delete(collection, models.FilterSelector(filter=chosen), wait=True)
        return len(ids)

    def _delete(self, collection: str, kept: models.Condition) -> int:
        older = [of_tenant(self._snapshot.tenant), _up_to(self._snapshot.generation)]
        chosen = models.Filter(must=list(older), must_not=[kept])
        count = self._client.count(collection, count_filter=chosen, exact=True).count
        if count:
            self._client.delete(collection, models.FilterSelector(filter=chosen), wait=True)
        return count

    def _write_set(self, part: ExampleSet) -> int:
        points = [
            models.PointStruct(
                id=id_,
                vector={DENSE: vector.astype(float).tolist()},
                payload={**payload, "generation": self._snapshot.generation},
            )
            for id_, payload, vector in example_points(self._snapshot.tenant, part)
        ]
        self._upsert(self._names.examples, points)
        return len(points)

    def _task_point(self, point: TaskPoint) -> models.PointStruct:
        vector: dict[str, models.Vector] = {DENSE: point.centroid.astype(float).tolist()}
        if point.terms:
            vector[LEXICAL] = models.SparseVector(
                indices=point.terms.ids.tolist(), values=point.terms.counts.tolist()
            )
        payload = {**point.payload, "generation": self._snapshot.generation}
        return models.PointStruct(id=point.id, vector=vector, payload=payload)

    def _upsert(self, collection: str, points: list[models.PointStruct]) -> None:
        for start in range(0, len(points), layout.POINT_BATCH):
            batch = points[start : start + layout.POINT_BATCH]
            with _calling("upsert", collection, len(batch)):
                self._client.upsert(collection, batch, wait=True)


def _calling(name: str, collection: str, points: int) -> tracing.Span:
    attributes: tracing.Attributes = {
        "db.system.name": "qdrant",
        "db.operation.name": name,
        "db.collection.name": collection,
        "db.operation.batch.size": points,
    }
    return tracing.span(f"{name} {collection}", "client", attributes)


def _example_id(set_digest: str, position: int) -> str:
    return point_id(f"{set_digest}:{position}")


def of_tenant(tenant: str) -> models.FieldCondition:
    """Returns the condition that a point is a tenant's."""
    return match_value("tenant", tenant)


def _up_to(generation: int) -> models.FieldCondition:
    return models.FieldCondition(key="generation", range=models.Range(lte=generation))


def match_value(key: str, value: str) -> models.FieldCondition:
    """Returns the condition that a field holds this value."""
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def match_any(key: str, values: list[str]) -> models.FieldCondition:
    """Returns the condition that a field holds one of these values."""
    return models.FieldCondition(key=key, match=models.MatchAny(any=values))
