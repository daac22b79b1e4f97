"""Writes a snapshot's points to Qdrant, and deletes what no reader can reach."""

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
    ) -> None:
        self._client = client
        self._names = names
        self._snapshot = snapshot
        self._tree = tree
        self._sets = {example_set_digest(snapshot.tenant, part): part for part in examples}

    def write_tasks(self) -> int:
        """Writes the tasks that are missing; returns how many."""
        if not self._tree.tasks:
            return 0
        held = layout.present(self._client, self._names.tasks, list(self._tree.tasks))
        missing = [point for id_, point in self._tree.tasks.items() if id_ not in held]
        self._upsert(self._names.tasks, [self._task_point(point) for point in missing])
        return len(missing)

    def write_examples(self, thorough: bool) -> int:
        """Writes the sets whose last point, written last, is missing; returns how many points.

        ``thorough`` counts every set, and writes those again that lost points since.
        """
        if not self._tree.tasks:
            return 0
        last = {_example_id(set_, size - 1): set_ for set_, size in self.set_sizes.items() if size}
        held = {last[id_] for id_ in layout.present(self._client, self._names.examples, list(last))}
        if thorough and self.count_examples() != sum(self.set_sizes.values()):
            held = {set_ for set_ in held if self.count_examples([set_]) == self.set_sizes[set_]}
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
        """Lets the marker name this root unless it names a newer generation's."""
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
                update_filter=models.Filter(must=[_up_to(generation)]),
            )

    def delete_replaced(self, digest: str, root: Payload) -> int:
        """Deletes what the root that was published before, ``root``, named and this one does not.

        What another encoder made stays: it is the quick way back, and goes with its collections.
        """
        if digest == self._tree.digest:
            return 0
        deleted = 0
        if Collections.of(self._names.prefix, root["encoder_digest"]).tasks == self._names.tasks:
            tasks = [id_ for id_ in task_ids(root) if id_ not in self._tree.tasks]
            old = [(set_, size) for set_, size in root.get(SETS, {}).items() if set_ not in self._sets]
            examples = [_example_id(set_, place) for set_, size in old for place in range(size)]
            deleted += self._delete_ids(self._names.tasks, tasks)
            deleted += self._delete_ids(self._names.examples, examples)
        scatters = [id_ for id_ in scatter_ids(root) if id_ not in self._tree.scatters]
        return deleted + self._delete_ids(self._names.profiles, [point_id(digest), *scatters])

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

    def _delete_ids(self, collection: str, ids: list[str]) -> int:
        if ids and self._client.collection_exists(collection):
            for batch in layout.in_batches(ids, layout.ID_BATCH):
                self._client.delete(collection, models.PointIdsList(points=batch), wait=True)
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
    return models.FieldCondition(key="tenant", match=models.MatchValue(value=tenant))


def _up_to(generation: int) -> models.FieldCondition:
    return models.FieldCondition(key="generation", range=models.Range(lte=generation))


def match_any(key: str, values: list[str]) -> models.FieldCondition:
    """Returns the condition that a field holds one of these values."""
    return models.FieldCondition(key=key, match=models.MatchAny(any=values))
