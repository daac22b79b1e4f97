"""Writes a snapshot's points to Qdrant, and deletes what no reader can reach."""

from __future__ import annotations

from collections.abc import Sequence

from qdrant_client import QdrantClient, models

from lorauter.index import collections as layout
from lorauter.index.codec import (
    TaskPoint,
    Tree,
    example_points,
    example_set_digest,
    marker_id,
    point_id,
)
from lorauter.index.collections import DENSE, LEXICAL, Collections
from lorauter.index.port import ExampleSet
from lorauter.routing.model import Snapshot


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

    def write_examples(self) -> int:
        """Writes the sets whose last point, written last, is missing; all incomplete ones if any is."""
        if not self._tree.tasks:
            return 0
        last = {
            point_id(f"{digest}:{len(part.vectors) - 1}"): digest
            for digest, part in self._sets.items()
            if len(part.vectors)
        }
        held = {last[id_] for id_ in layout.present(self._client, self._names.examples, list(last))}
        written = sum(self._write_set(part) for digest, part in self._sets.items() if digest not in held)
        if self.count_examples(list(self._sets)) != self.example_count:
            written += sum(
                self._write_set(part)
                for digest, part in self._sets.items()
                if self.count_examples([digest]) != len(part.vectors)
            )
        return written

    @property
    def example_count(self) -> int:
        """Number of example points that the snapshot has."""
        return sum(len(part.vectors) for part in self._sets.values())

    def count_examples(self, sets: list[str] | None = None) -> int:
        """Returns how many points of these sets, all of the snapshot's by default, are in the index."""
        chosen = list(self._sets) if sets is None else sets
        if not chosen:
            return 0
        condition = models.Filter(must=[_match_any("set", chosen)])
        return self._client.count(self._names.examples, count_filter=condition, exact=True).count

    def write_root(self) -> int:
        """Writes the root if it is missing; returns how many points that were."""
        if layout.present(self._client, self._names.profiles, [self._tree.root_id]):
            return 0
        root = models.PointStruct(id=self._tree.root_id, vector={}, payload=self._tree.root)
        self._upsert(self._names.profiles, [root])
        return 1

    def move_marker(self) -> None:
        """Lets the marker name this root unless it names a newer generation's."""
        tenant, generation = self._snapshot.tenant, self._snapshot.generation
        marker = models.PointStruct(
            id=marker_id(tenant),
            vector={},
            payload={"tenant": tenant, "generation": generation, "root": self._tree.digest},
        )
        self._client.upsert(
            self._names.profiles,
            [marker],
            wait=True,
            ordering=models.WriteOrdering.STRONG,
            update_filter=models.Filter(must=[_up_to(generation)]),
        )

    def delete_unreachable(self) -> int:
        """Deletes points of this and older generations that this root does not name; returns how many.

        Points of newer generations are left: their publisher has not moved the marker yet.
        """
        kept = [self._tree.root_id, marker_id(self._snapshot.tenant)]
        deleted = self._delete(self._names.profiles, models.HasIdCondition(has_id=kept))
        if self._client.collection_exists(self._names.tasks):
            tasks = models.HasIdCondition(has_id=list(self._tree.tasks))
            deleted += self._delete(self._names.tasks, tasks)
        if self._client.collection_exists(self._names.examples):
            deleted += self._delete(self._names.examples, _match_any("set", list(self._sets)))
        return deleted

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
                indices=list(point.terms), values=list(point.terms.values())
            )
        payload = {**point.payload, "generation": self._snapshot.generation}
        return models.PointStruct(id=point.id, vector=vector, payload=payload)

    def _upsert(self, collection: str, points: list[models.PointStruct]) -> None:
        for start in range(0, len(points), layout.POINT_BATCH):
            self._client.upsert(collection, points[start : start + layout.POINT_BATCH], wait=True)


def of_tenant(tenant: str) -> models.FieldCondition:
    """Returns the condition that a point is a tenant's."""
    return models.FieldCondition(key="tenant", match=models.MatchValue(value=tenant))


def _up_to(generation: int) -> models.FieldCondition:
    return models.FieldCondition(key="generation", range=models.Range(lte=generation))


def _match_any(key: str, values: list[str]) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchAny(any=values))
