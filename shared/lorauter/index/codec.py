"""Turns snapshots into content-addressed points and back, the same way for every index."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lorauter.index.port import ExampleSet
from lorauter.routing.bm25 import Terms, terms_of
from lorauter.routing.model import (
    Adapter,
    Affinity,
    Backend,
    Composition,
    Manifest,
    ManifestEntry,
    Pool,
    Profile,
    Serving,
    Snapshot,
    Task,
    Vector,
)
from lorauter.routing.whitening import Packed

Payload = dict[str, Any]

SCHEMA_VERSION = 6
"""Version of the points' layout; a new one means new collections."""

MARKER = "marker"
"""The ``kind`` of markers, by which all of them are found."""

_NAMESPACE = uuid.UUID("6f7dfc62-6d2a-5a0f-9d5b-4a1b3a2f0c11")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TaskPoint:
    """A task as a point: ``id`` is derived from everything else in it."""

    id: str
    payload: Payload
    centroid: Vector
    terms: Terms


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A snapshot as points: the root's digest, id and payload, and by point id what the root names.

    ``scatters`` are payloads: a profile's scatter changes seldom and is most of what a root would weigh.
    """

    digest: str
    root_id: str
    root: Payload
    tasks: dict[str, TaskPoint]
    scatters: dict[str, Payload]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What roots name, as readers hold it, by point id."""

    tasks: Mapping[str, Task]
    scatters: Mapping[str, Packed]


def point_id(digest: str) -> str:
    """Returns the point id of a content digest."""
    return str(uuid.uuid5(_NAMESPACE, digest))


def marker_id(tenant: str) -> str:
    """Returns the id of a tenant's marker."""
    return point_id(f"marker:{tenant}")


def encode(snapshot: Snapshot) -> Tree:
    """Returns the tree of a snapshot. Order of pools, tasks, adapters and backends does not matter."""
    tasks: dict[str, TaskPoint] = {}
    scatters: dict[str, Payload] = {}
    pools: list[Payload] = []
    for pool in sorted(snapshot.pools.values(), key=lambda pool: pool.pool_id):
        points = [_encode_task(snapshot.tenant, pool.pool_id, task) for task in _by_id(pool.tasks)]
        tasks.update((point.id, point) for point in points)
        scatter = _encode_scatter(snapshot.tenant, pool.profile.scatter)
        scatters |= scatter
        pools.append(_encode_pool(pool, [point.id for point in points], next(iter(scatter), None)))
    root: Payload = {
        "tenant": snapshot.tenant,
        "generation": snapshot.generation,
        "encoder_digest": snapshot.encoder_digest,
        "schema": SCHEMA_VERSION,
        "pools": pools,
    }
    digest = "sha256:" + hashlib.sha256(_json(root)).hexdigest()
    return Tree(digest, point_id(digest), root, tasks, scatters)


def decode(root: Payload, digest: str, parts: Parts) -> Snapshot:
    """Returns the snapshot of a root, given all that it names."""
    pools = (_decode_pool(pool, parts) for pool in root["pools"])
    return Snapshot(
        tenant=root["tenant"],
        generation=int(root["generation"]),
        digest=digest,
        encoder_digest=root["encoder_digest"],
        pools={pool.pool_id: pool for pool in pools},
    )


def canonical(snapshot: Snapshot) -> Snapshot:
    """Returns the snapshot as a reader of the index gets it: sorted, in stored precision, with its digest."""
    tree = encode(snapshot)
    tasks = {id_: decode_task(id_, p.payload, p.centroid, p.terms) for id_, p in tree.tasks.items()}
    scatters = {id_: decode_scatter(payload) for id_, payload in tree.scatters.items()}
    return decode(json.loads(_json(tree.root)), tree.digest, Parts(tasks, scatters))


def root_digest(snapshot: Snapshot) -> str:
    """Returns the digest that the snapshot has once published."""
    return encode(snapshot).digest


def task_ids(root: Payload) -> list[str]:
    """Returns the point ids of all tasks of a root."""
    return [id_ for pool in root["pools"] for id_ in pool["tasks"]]


def scatter_ids(root: Payload) -> list[str]:
    """Returns the point ids of the scatters of a root's profiles."""
    named = (pool["profile"]["scatter"] for pool in root["pools"])
    return list(dict.fromkeys(id_ for id_ in named if id_ is not None))


def parts_of(snapshot: Snapshot) -> Parts:
    """Returns what a snapshot that was read holds, by point id."""
    tasks = {task.address: task for pool in snapshot.pools.values() for task in pool.tasks}
    scatters: dict[str, Packed] = {}
    for pool in snapshot.pools.values():
        if pool.profile.scatter is not None:
            (id_,) = _encode_scatter(snapshot.tenant, pool.profile.scatter)
            scatters[id_] = pool.profile.scatter
    return Parts(tasks, scatters)


def decode_task(id_: str, payload: Payload, centroid: Vector, terms: Mapping[int, float]) -> Task:
    """Returns the task of a point."""
    return Task(
        task_id=payload["task_id"],
        version=int(payload["version"]),
        metric=payload["metric"],
        tags=frozenset(payload["tags"]),
        example_count=int(payload["example_count"]),
        centroid=np.asarray(centroid, dtype=np.float32),
        terms=_stored(terms),
        affinities=tuple(
            Affinity(row[0], int(row[1]), float(row[2]), int(row[3]), float(row[4]))
            for row in payload["affinities"]
        ),
        address=id_,
        compositions=tuple(_decode_composition(row) for row in payload["compositions"]),
    )


def decode_scatter(payload: Payload) -> Packed:
    """Returns the scatter of a point."""
    scatter = np.frombuffer(base64.b64decode(payload["scatter"]), dtype="<f2").astype(np.float16)
    scatter.setflags(write=False)
    return scatter


def example_set_digest(tenant: str, examples: ExampleSet) -> str:
    """Returns the digest of a task version's example vectors."""
    head = _json([tenant, examples.pool_id, examples.task_id, examples.version, len(examples.vectors)])
    return "sha256:" + hashlib.sha256(head + _float_bytes(examples.vectors)).hexdigest()


def example_points(tenant: str, examples: ExampleSet) -> Iterator[tuple[str, Payload, Vector]]:
    """Yields id, payload and vector of every example of a set."""
    digest = example_set_digest(tenant, examples)
    for position, vector in enumerate(examples.vectors):
        payload = {
            "tenant": tenant,
            "pool": examples.pool_id,
            "task_id": examples.task_id,
            "version": examples.version,
            "position": position,
            "set": digest,
        }
        yield point_id(f"{digest}:{position}"), payload, vector


def _encode_task(tenant: str, pool_id: str, task: Task) -> TaskPoint:
    payload: Payload = {
        "tenant": tenant,
        "pool": pool_id,
        "task_id": task.task_id,
        "version": task.version,
        "metric": task.metric,
        "tags": sorted(task.tags),
        "example_count": task.example_count,
        "affinities": [
            [a.adapter_id, a.adapter_version, float(a.score), a.count, float(a.standard_error)]
            for a in task.affinities
        ],
        "compositions": [_encode_composition(each) for each in task.compositions],
    }
    centroid = np.ascontiguousarray(task.centroid, dtype="<f4")
    terms = _stored(task.terms)
    digest = hashlib.sha256(_json(payload))
    digest.update(centroid.tobytes())
    digest.update(terms.ids.astype("<u4").tobytes())
    digest.update(terms.counts.astype("<f4").tobytes())
    return TaskPoint(point_id("task:" + digest.hexdigest()), payload, centroid, terms)


def _encode_composition(composition: Composition) -> Payload:
    floats = ("score", "standard_error", "gain", "gain_error")
    return {
        "name": composition.name,
        "members": [[id_, version, float(weight)] for id_, version, weight in composition.members],
        "count": composition.count,
        **{name: float(getattr(composition, name)) for name in floats},
    }


def _decode_composition(payload: Payload) -> Composition:
    members = tuple((id_, int(version), float(weight)) for id_, version, weight in payload["members"])
    floats = {name: float(payload[name]) for name in ("score", "standard_error", "gain", "gain_error")}
    return Composition(name=payload["name"], members=members, count=int(payload["count"]), **floats)


def _stored(terms: Mapping[int, float]) -> Terms:
    """Returns the terms in stored precision."""
    known = terms_of(terms)
    return Terms(known.ids, known.counts.astype(np.float32).astype(np.float64))


def _encode_pool(pool: Pool, points: list[str], scatter: str | None) -> Payload:
    adapters = sorted(pool.adapters, key=lambda adapter: (adapter.adapter_id, adapter.version))
    backends = sorted(pool.backends, key=lambda backend: backend.backend_id)
    return {
        "id": pool.pool_id,
        "base_model": pool.base_model,
        "base_model_aliases": list(pool.base_model_aliases),
        "untypical_policy": pool.untypical_policy,
        "profile": {
            "digest": pool.profile.digest,
            "constants": {key: float(value) for key, value in sorted(pool.profile.constants.items())},
            "figures": {key: float(value) for key, value in sorted(pool.profile.figures.items())},
            "scatter": scatter,
        },
        "adapters": [{**dataclasses.asdict(a), "aliases": sorted(a.aliases)} for a in adapters],
        "backends": [dataclasses.asdict(backend) for backend in backends],
        "serving": dataclasses.asdict(pool.serving),
        "manifests": [_encode_manifest(manifest) for manifest in pool.manifests],
        "tasks": points,
    }


def _decode_pool(pool: Payload, parts: Parts) -> Pool:
    profile = pool["profile"]
    return Pool(
        pool_id=pool["id"],
        base_model=pool["base_model"],
        base_model_aliases=tuple(pool["base_model_aliases"]),
        untypical_policy=pool["untypical_policy"],
        profile=Profile(
            digest=profile["digest"],
            constants=_floats(profile["constants"]),
            figures=_floats(profile["figures"]),
            scatter=None if profile["scatter"] is None else parts.scatters[profile["scatter"]],
        ),
        tasks=tuple(parts.tasks[id_] for id_ in pool["tasks"]),
        adapters=tuple(_decode_adapter(adapter) for adapter in pool["adapters"]),
        backends=tuple(Backend(**backend) for backend in pool["backends"]),
        serving=Serving(**pool["serving"]),
        manifests=tuple(_decode_manifest(manifest) for manifest in pool["manifests"]),
    )


def _encode_manifest(manifest: Manifest) -> Payload:
    entries = [
        [each.name, each.rank, [[digest, float(weight)] for digest, weight in each.members]]
        for each in manifest.entries
    ]
    return {"digest": manifest.digest, "entries": entries}


def _decode_manifest(payload: Payload) -> Manifest:
    entries = (
        ManifestEntry(name, tuple((digest, float(weight)) for digest, weight in members), int(rank))
        for name, rank, members in payload["entries"]
    )
    return Manifest(payload["digest"], tuple(entries))


def _encode_scatter(tenant: str, scatter: Packed | None) -> dict[str, Payload]:
    """Returns the point of a scatter, id and payload; no point where there is none."""
    if scatter is None:
        return {}
    values = np.ascontiguousarray(scatter, dtype="<f2").tobytes()
    digest = hashlib.sha256(_json(tenant) + values).hexdigest()
    payload: Payload = {"tenant": tenant, "scatter": base64.b64encode(values).decode()}
    return {point_id("scatter:" + digest): payload}


def _decode_adapter(adapter: Payload) -> Adapter:
    pins_until = adapter["pins_until"]
    values = {
        **adapter,
        "aliases": tuple(adapter["aliases"]),
        "pins_until": None if pins_until is None else float(pins_until),
    }
    return Adapter(**values)


def _by_id(tasks: tuple[Task, ...]) -> list[Task]:
    return sorted(tasks, key=lambda task: task.task_id)


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _float_bytes(vectors: Vector) -> bytes:
    return np.ascontiguousarray(vectors, dtype="<f4").tobytes()


def _json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, shortest floats, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
