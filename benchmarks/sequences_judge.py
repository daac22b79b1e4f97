"""What the index must hold, worked out from what the registry answers, without any code of the worker's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import QdrantClient

from benchmarks.sequences_site import HashEncoder
from lorauter.identifiers import BASE
from lorauter.index.codec import Tree, example_points, marker_id
from lorauter.index.port import ExampleSet
from lorauter.routing import compile_pool, decide, term_frequencies
from lorauter.routing.decision import Decision
from lorauter.routing.model import Pool, Snapshot, Task
from lorauter.routing.strategies.strategy import Query
from lorauter_registry.domain import resources as registry
from lorauter_registry.domain.adapter_requests import ListAdapters, ListAdapterVersions
from lorauter_registry.domain.affinity_requests import ListAffinities
from lorauter_registry.domain.requests import ListBackends, ListPools, ListTasks, ListValidationExamples
from lorauter_registry.service import Registry

REFUSALS = {"RETIRED": "ADAPTER_RETIRED", "QUARANTINED": "ADAPTER_QUARANTINED"}
Plain = dict[str, Any]


@dataclass(frozen=True)
class Listed:
    """All that a registry lists."""

    pools: Sequence[registry.Pool]
    tasks: Sequence[registry.Task]
    adapters: Sequence[registry.Adapter]
    backends: Sequence[registry.Backend]

    @classmethod
    def of(cls, asked: Registry) -> Listed:
        """Asks a registry."""
        return cls(
            asked.list_pools(ListPools()).pools,
            asked.list_tasks(ListTasks()).tasks,
            asked.list_adapters(ListAdapters()).adapters,
            asked.list_backends(ListBackends()).backends,
        )

    def etags(self) -> dict[tuple[str, str], str]:
        """Returns the etags of all resources by kind and id."""
        resources: tuple[Any, ...] = (*self.pools, *self.tasks, *self.adapters, *self.backends)
        return {(type(each).__name__.lower(), each.id): each.etag for each in resources}


def wanted(there: Listed, asked: Registry, encoder: HashEncoder) -> Plain:
    """Returns what must be routed by, as plain values: pools by id, and in them tasks, adapters, backends."""
    versions = {
        each.id: sorted(
            asked.list_adapter_versions(ListAdapterVersions(id=each.id)).versions,
            key=lambda version: version.version,
        )
        for each in there.adapters
    }
    scores = asked.list_affinities(ListAffinities()).affinities
    counts = Counter((each.adapter_id, each.adapter_version) for each in scores)
    routed = {each.id: _routed(each, versions[each.id], counts) for each in there.adapters}
    pools: Plain = {}
    for pool in there.pools:
        tasks = [each for each in there.tasks if each.pool == pool.id and each.version]
        adapters = [each for each in there.adapters if each.pool == pool.id]
        pools[pool.id] = {
            "base": (pool.base_model, pool.aliases, pool.untypical_policy.value),
            "refuse_degraded": pool.serving.fallback == "REFUSE",
            "tasks": {each.id: _task(asked, encoder, each, _best(each, scores, routed)) for each in tasks},
            "adapters": dict(
                row for each in adapters for row in _versions(each, versions[each.id], routed[each.id])
            ),
            "backends": {
                each.id: (each.kind.lower(), each.url, each.state != "ACTIVE")
                for each in there.backends
                if each.pool == pool.id
            },
        }
    return pools


def found(snapshot: Snapshot) -> Plain:
    """Returns what a snapshot routes by, as wanted() says it."""
    return {pool_id: _found(pool) for pool_id, pool in snapshot.pools.items()}


def decisions(snapshot: Snapshot, encoder: HashEncoder, queries: Sequence[str]) -> dict[str, list[Decision]]:
    """Returns by pool how queries are decided."""
    asked = [Query(vector, text) for vector, text in zip(encoder.encode(queries), queries, strict=True)]
    pools = {pool_id: compile_pool(pool) for pool_id, pool in snapshot.pools.items()}
    return {pool_id: [decide(pool, query) for query in asked] for pool_id, pool in pools.items()}


def points(tree: Tree, snapshot: Snapshot, examples: Sequence[ExampleSet]) -> dict[str, Plain]:
    """Returns all points that an index of exactly this snapshot holds, by id, as stored_points() does."""
    tenant, generation = snapshot.tenant, snapshot.generation
    marker = {"tenant": tenant, "generation": generation, "root": tree.digest}
    held: dict[str, Plain] = {tree.root_id: {"payload": tree.root}}
    held[marker_id(tenant)] = {"payload": marker}
    held |= {id_: {"payload": payload} for id_, payload in tree.scatters.items()}
    for id_, task in tree.tasks.items():
        terms = dict(zip(task.terms.ids.tolist(), task.terms.counts.tolist(), strict=True))
        held[id_] = {"payload": task.payload, "dense": task.centroid.tolist(), "terms": terms}
    for part in examples:
        for id_, payload, vector in example_points(tenant, part):
            held[id_] = {"payload": payload, "dense": vector.tolist(), "terms": {}}
    return held


def stored_points(client: QdrantClient) -> dict[str, Plain]:
    """Returns all points of all collections by id, without what only writers look at."""
    return dict(
        _stored(record)
        for collection in client.get_collections().collections
        for record in client.scroll(collection.name, limit=10_000, with_payload=True, with_vectors=True)[0]
    )


def differences(stored: Mapping[str, Plain], held: Mapping[str, Plain]) -> tuple[list[str], int]:
    """Returns in words what is missing or not as it must be, and how many points are of no use."""
    wrong = [
        f"point {id_} is {str(stored.get(id_))[:300]}, not {str(point)[:300]}"
        for id_, point in held.items()
        if not _is_same(stored.get(id_), point)
    ]
    return wrong, len(stored.keys() - held.keys())


def _is_same(there: Plain | None, point: Plain) -> bool:
    """Whether a point is what it must be; what its payload says beside that is for writers only."""
    if there is None:
        return False
    return (
        {key: there["payload"].get(key) for key in point["payload"]} == point["payload"]
        and np.array_equal(there.get("dense", []), point.get("dense", []))
        and there.get("terms", {}) == point.get("terms", {})
    )


def _stored(record: Any) -> tuple[str, Plain]:
    vectors = record.vector or {}
    point: Plain = {"payload": record.payload}
    if "dense" in vectors:
        lexical = vectors.get("lexical")
        terms = dict(zip(lexical.indices, lexical.values, strict=True)) if lexical else {}
        point |= {"dense": vectors["dense"], "terms": terms}
    return str(record.id), point


def _routed(
    adapter: registry.Adapter,
    versions: Sequence[registry.AdapterVersion],
    counts: Mapping[tuple[str, int], int],
) -> int:
    """Returns the version that is measured on most tasks; of equals the champion, else the newest."""
    active = [each.version for each in versions if each.state == "ACTIVE"]
    champion = adapter.aliases.get("champion")
    return max(
        active, key=lambda version: (counts[adapter.id, version], version == champion, version), default=0
    )


def _best(
    task: registry.Task, scores: Sequence[registry.Affinity], routed: Mapping[str, int]
) -> list[tuple[str, int, float, int]]:
    """Returns adapter, version, score and count of what is measured on a task, best first."""
    of_task = [
        each
        for each in scores
        if each.task_id == task.id
        and (each.adapter_id == BASE or routed.get(each.adapter_id) == each.adapter_version)
    ]
    of_task.sort(key=lambda each: (-each.shrunk_score, each.standard_error, each.adapter_id))
    return [(each.adapter_id, each.adapter_version, each.shrunk_score, each.count) for each in of_task]


def _task(
    asked: Registry,
    encoder: HashEncoder,
    task: registry.Task,
    best: list[tuple[str, int, float, int]],
) -> Plain:
    page = asked.list_validation_examples(ListValidationExamples(task_id=task.id, page_size=1_000))
    texts = [each.input for each in page.examples]
    if task.prompt.system:
        texts = [f"{task.prompt.system}\n\n{text}" for text in texts]
    terms: Counter[int] = Counter()
    for text in texts:
        terms.update({term: int(count) for term, count in term_frequencies(text).items()})
    centroid = np.mean([encoder.encode([text])[0] for text in texts], axis=0)
    return {
        "of": (task.version, task.metric, sorted(task.tags), task.example_count),
        "terms": dict(terms),
        "centroid": np.round(centroid, 5).tolist(),
        "affinities": best,
    }


def _versions(
    adapter: registry.Adapter, versions: Sequence[registry.AdapterVersion], routed: int
) -> Iterator[tuple[tuple[str, int], Any]]:
    for each in versions:
        aliases = sorted(name for name, version in adapter.aliases.items() if version == each.version)
        pins = each.pins_until.timestamp() if each.state == "DRAINING" and each.pins_until else None
        refusal = REFUSALS.get(each.state, "")
        is_routed = routed == each.version
        yield (
            (adapter.id, each.version),
            (each.digest, is_routed, aliases, pins, refusal, each.successor, each.rank),
        )


def _found(pool: Pool) -> Plain:
    return {
        "base": (pool.base_model, pool.base_model_aliases, pool.untypical_policy),
        "refuse_degraded": pool.serving.refuse_degraded,
        "tasks": {task.task_id: _found_task(task) for task in pool.tasks},
        "adapters": {
            (each.adapter_id, each.version): (
                *(each.digest, each.routable, sorted(each.aliases), each.pins_until),
                *(each.refusal, each.successor, each.rank),
            )
            for each in pool.adapters
        },
        "backends": {each.backend_id: (each.kind, each.url, each.draining) for each in pool.backends},
    }


def _found_task(task: Task) -> Plain:
    return {
        "of": (task.version, task.metric, sorted(task.tags), task.example_count),
        "terms": {int(term): int(count) for term, count in task.terms.items()},
        "centroid": np.round(task.centroid, 5).tolist(),
        "affinities": [
            (each.adapter_id, each.adapter_version, each.score, each.count) for each in task.affinities
        ],
    }
