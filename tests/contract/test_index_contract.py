"""One contract for every index: in memory, qdrant-client's local mode, a process, a real server."""

import os
import uuid
from dataclasses import replace

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from lorauter.errors import LorauterError, NotFound, Unavailable
from lorauter.index import ExampleSet, MemoryIndex, QdrantIndex, SnapshotIndex, canonical, root_digest
from lorauter.index.codec import marker_id
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
)

KINDS = ["memory", "local", "process", *(["server"] if os.environ.get("QDRANT_URL") else [])]
ENCODER, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


@pytest.fixture(params=KINDS)
def index(request) -> SnapshotIndex:
    if request.param == "memory":
        return MemoryIndex()
    if request.param == "local":
        return QdrantIndex(QdrantClient(":memory:"))
    if request.param == "server":
        return QdrantIndex(os.environ["QDRANT_URL"], prefix="test-")
    return QdrantIndex(request.getfixturevalue("qdrant_url"))


@pytest.fixture
def tenant() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


BACKENDS = (
    Backend("engine", "ENGINE", "http://127.0.0.1:1", draining=False),
    Backend("vllm", "vllm", "dns+http://vllm:8000", True, 8, 64, 128, "/models/adapters", 2),
)
MANIFESTS = (
    Manifest("sha256:new", (ManifestEntry("mix-1", (("sha256:22", 2 / 3), ("sha256:11", 1 / 3)), 32),)),
    Manifest("sha256:old", (ManifestEntry("22" * 32, (("sha256:22", 1.0),), 16),)),
)
SCATTER = np.array([1.0, -0.25, 1 / 3], dtype=np.float16)


def task(number: int, version: int = 1, affinities=(), dimension: int = 8, terms=None) -> Task:
    values = np.random.default_rng(number * 100 + version).normal(size=dimension).astype(np.float32)
    return Task(
        task_id=f"task-{number:03d}",
        version=version,
        metric="exact_match",
        tags=frozenset({"b", "a"}),
        example_count=3,
        centroid=values,
        terms={4294967295: 1 / 3, 7: 2.0} if terms is None else terms,
        affinities=tuple(affinities),
    )


def snapshot(tenant: str, generation: int, tasks, encoder: str = ENCODER, scatter=SCATTER) -> Snapshot:
    pool = Pool(
        pool_id="main",
        base_model="lorauter/demo-base",
        base_model_aliases=("alias-b", "alias-a"),
        untypical_policy="ROUTE",
        profile=Profile("sha256:p", {"tau": 0.1, "k": 3.0}, {"loo_top1": 1 / 3}, scatter),
        tasks=tuple(tasks),
        adapters=(
            Adapter("b", 2, "sha256:22", routable=True, aliases=("champion",), rank=16),
            Adapter("a", 1, "sha256:11", routable=False, pins_until=1.5, refusal="RETIRED", successor="b"),
        ),
        backends=BACKENDS,
        serving=Serving(refuse_degraded=True, compose_on_demand=True),
        manifests=MANIFESTS,
    )
    return Snapshot(tenant, generation, "", encoder, {"main": pool})


def examples(tasks, count: int = 3):
    return [
        ExampleSet("main", t.task_id, t.version, np.stack([t.centroid + i for i in range(count)]))
        for t in tasks
    ]


def same(left: Snapshot, right: Snapshot) -> bool:
    """Equal by content: numpy arrays have no truth value, so dataclass equality does not do."""
    return root_digest(left) == root_digest(right) == left.digest == right.digest


def publish(index, snap: Snapshot):
    return index.publish(snap, examples(snap.pools["main"].tasks))


def test_index_is_empty_when_nothing_was_published(index, tenant):
    assert index.published(tenant) is None
    with pytest.raises(NotFound) as caught:
        index.read(tenant)
    assert caught.value.reason == "INDEX_EMPTY"


def test_read_returns_every_field_when_published(index, tenant):
    affinities = [Affinity("b", 2, 1 / 3, 3, 0.27), Affinity("base", 0, 0.1, 3, 0.01)]
    composition = Composition("mix-1", (("b", 2, 0.6), ("a", 1, 0.4)), 2 / 3, 12, 0.1, 1 / 3, 0.11)
    first = replace(task(1, affinities=affinities), compositions=(composition,))
    snap = snapshot(tenant, 5, [task(2), first, task(3, terms={})])
    report = publish(index, snap)
    got = index.read(tenant)
    assert (report.moved, report.deleted) == (True, 0)
    assert got.digest == report.digest
    assert same(got, canonical(snap))
    assert (got.tenant, got.generation, got.encoder_digest) == (tenant, 5, ENCODER)
    pool = got.pools["main"]
    assert [t.task_id for t in pool.tasks] == ["task-001", "task-002", "task-003"]
    np.testing.assert_array_equal(pool.tasks[0].centroid, task(1).centroid)
    assert pool.tasks[0].terms == {7: 2.0, 4294967295: float(np.float32(1 / 3))}
    assert pool.tasks[0].affinities == tuple(affinities)
    assert pool.tasks[0].compositions == (composition,)
    assert pool.tasks[0].tags == {"a", "b"}
    assert pool.tasks[2].terms == {}
    assert [a.adapter_id for a in pool.adapters] == ["a", "b"]
    assert pool.adapters[0] == Adapter("a", 1, "sha256:11", False, (), 1.5, "RETIRED", "b")
    assert pool.adapters[1].rank == 16
    assert pool.backends == BACKENDS
    assert pool.serving == Serving(refuse_degraded=True, compose_on_demand=True)
    assert pool.manifests == MANIFESTS
    assert pool.profile == Profile("sha256:p", {"k": 3.0, "tau": 0.1}, {"loo_top1": 1 / 3})
    assert pool.profile.scatter.tolist() == SCATTER.tolist()
    assert index.published(tenant) == (5, got.digest)


def test_pool_without_tasks_is_read_when_published(index, tenant):
    publish(index, snapshot(tenant, 1, []))
    assert index.read(tenant).pools["main"].tasks == ()


def test_publish_writes_nothing_when_repeated(index, tenant):
    snap = snapshot(tenant, 3, [task(1), task(2)])
    first = publish(index, snap)
    again = publish(index, snap)
    assert first.written > 0
    assert (again.written, again.deleted, again.moved) == (0, 0, True)
    assert index.read(tenant).digest == first.digest == again.digest


def test_publish_writes_and_deletes_only_the_difference_when_one_task_changes(index, tenant):
    publish(index, snapshot(tenant, 1, [task(1), task(2)]))
    report = publish(index, snapshot(tenant, 2, [task(1), task(2, version=2)]))
    # the root, the task and its three examples, each old and new
    assert (report.written, report.deleted) == (5, 5)
    assert [t.version for t in index.read(tenant).pools["main"].tasks] == [1, 2]


def test_a_scatter_is_written_only_when_it_changes(index, tenant):
    publish(index, snapshot(tenant, 1, [task(1)]))
    held = index.read(tenant)
    assert publish(index, snapshot(tenant, 2, [task(1)])).written == 1
    newer = index.read(tenant, held)
    assert newer.pools["main"].profile.scatter.tolist() == SCATTER.tolist()
    report = publish(index, snapshot(tenant, 3, [task(1)], scatter=SCATTER * 2))
    assert (report.written, report.deleted) == (2, 2)
    assert index.read(tenant, newer).pools["main"].profile.scatter.tolist() == (SCATTER * 2).tolist()
    report = publish(index, snapshot(tenant, 4, [task(1)], scatter=None))
    assert (report.written, report.deleted) == (1, 2)
    assert index.read(tenant).pools["main"].profile.scatter is None


def test_marker_stays_when_an_older_generation_is_published_late(index, tenant):
    newest = publish(index, snapshot(tenant, 7, [task(1, version=2)]))
    late = publish(index, snapshot(tenant, 6, [task(1)]))
    assert late.moved is False
    assert index.published(tenant) == (7, newest.digest)
    assert index.read(tenant).pools["main"].tasks[0].version == 2


def test_points_of_the_newest_survive_when_an_older_publisher_cleans_up(index, tenant):
    publish(index, snapshot(tenant, 4, [task(1), task(2)]))
    publish(index, snapshot(tenant, 5, [task(1), task(2), task(3)]))
    publish(index, snapshot(tenant, 4, [task(1)]))
    assert len(index.read(tenant).pools["main"].tasks) == 3


def test_tenants_are_apart_when_one_is_published(index, tenant):
    other = tenant + "-other"
    publish(index, snapshot(tenant, 1, [task(1)]))
    publish(index, snapshot(other, 9, [task(2)]))
    publish(index, snapshot(tenant, 2, []))
    assert [t.task_id for t in index.read(other).pools["main"].tasks] == ["task-002"]
    assert index.published(other)[0] == 9
    assert index.read(tenant).pools["main"].tasks == ()


def test_read_returns_the_held_snapshot_when_it_is_still_published(index, tenant):
    publish(index, snapshot(tenant, 1, [task(1)]))
    held = index.read(tenant)
    assert index.read(tenant, held) is held
    publish(index, snapshot(tenant, 2, [task(1), task(2)]))
    newer = index.read(tenant, held)
    assert newer.generation == 2
    assert len(newer.pools["main"].tasks) == 2


def test_tasks_and_encoder_change_in_one_step_when_the_encoder_changes(index, tenant):
    publish(index, snapshot(tenant, 1, [task(1)]))
    publish(index, snapshot(tenant, 2, [task(1, dimension=4)], encoder=OTHER))
    got = index.read(tenant)
    assert got.encoder_digest == OTHER
    assert got.pools["main"].tasks[0].centroid.shape == (4,)


def test_nothing_is_written_anew_when_the_former_encoder_comes_back_in_time(index, tenant):
    tasks, turned = [task(1), task(2)], [task(1, dimension=4), task(2, dimension=4)]
    publish(index, snapshot(tenant, 1, tasks))
    publish(index, snapshot(tenant, 2, turned, encoder=OTHER))
    assert index.drop_former(unused_seconds=3600) == 0
    report = publish(index, snapshot(tenant, 3, tasks))
    if not isinstance(index, MemoryIndex):
        assert report.written == 1
    assert same(index.read(tenant), canonical(snapshot(tenant, 3, tasks)))


def test_verify_is_sound_only_when_the_expected_snapshot_is_there(index, tenant):
    snap = snapshot(tenant, 2, [task(1), task(2)])
    sets = examples(snap.pools["main"].tasks)
    assert index.verify(snap, sets).missing == 10
    index.publish(snap, sets)
    assert index.verify(snap, sets).is_sound
    assert not index.verify(replace(snap, generation=3), sets).current
    assert index.verify(replace(snap, generation=3), sets).missing == 1


def test_a_lower_generation_is_published_when_the_tenant_was_cleared(index, tenant):
    other = tenant + "-other"
    publish(index, snapshot(other, 3, [task(5)]))
    publish(index, snapshot(tenant, 9, [task(1), task(2)]))
    index.clear(tenant)
    assert index.published(tenant) is None
    report = publish(index, snapshot(tenant, 1, [task(1)]))
    assert (report.moved, report.deleted) == (True, 0)
    assert [t.task_id for t in index.read(tenant).pools["main"].tasks] == ["task-001"]
    assert index.read(other).generation == 3


def test_publish_refuses_when_a_figure_is_not_finite(index, tenant):
    snap = snapshot(tenant, 1, [task(1, affinities=[Affinity("a", 1, float("nan"), 1, 0.0)])])
    with pytest.raises(ValueError, match="JSON"):
        publish(index, snap)
    assert index.published(tenant) is None


def test_single_points_are_restored_when_publishing_is_thorough(tenant):
    client = QdrantClient(":memory:")
    index = QdrantIndex(client)
    snap = snapshot(tenant, 2, [task(1), task(2)])
    sets = examples(snap.pools["main"].tasks)
    index.publish(snap, sets)
    chosen = models.Filter(must=[models.FieldCondition(key="position", match=models.MatchValue(value=0))])
    client.delete("examples", models.FilterSelector(filter=chosen))
    assert index.verify(snap, sets).missing == 2
    assert index.publish(snap, sets).written == 0
    assert index.publish(snap, sets, thorough=True).written == 6
    assert index.verify(snap, sets).is_sound


def test_what_a_dead_publisher_left_is_deleted_when_publishing_is_thorough(tenant):
    client = QdrantClient(":memory:")
    index = QdrantIndex(client)
    publish(index, snapshot(tenant, 2, [task(9)]))
    marker = client.retrieve("profiles", [marker_id(tenant)])[0]
    snap = snapshot(tenant, 1, [task(1)])
    sets = examples(snap.pools["main"].tasks)
    index.publish(snap, sets)
    snap = replace(snap, generation=3)
    client.upsert("profiles", [models.PointStruct(id=marker.id, vector={}, payload=marker.payload)])
    assert index.publish(snap, sets).deleted == 5
    assert index.verify(snap, sets).surplus == 1
    assert index.publish(snap, sets, thorough=True).deleted == 1
    assert index.verify(snap, sets).surplus == 0


@pytest.mark.parametrize("part", ["tasks", "examples", "profiles"])
def test_publishing_repairs_when_points_are_lost(part, tenant):
    client = QdrantClient(":memory:")
    index = QdrantIndex(client)
    snap = snapshot(tenant, 2, [task(1), task(2)])
    sets = examples(snap.pools["main"].tasks)
    report = index.publish(snap, sets)
    held = {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}
    client.delete_collection(held[part])
    assert not index.verify(snap, sets).is_sound
    assert index.publish(snap, sets, thorough=True).digest == report.digest
    assert index.verify(snap, sets).is_sound
    assert same(index.read(tenant), canonical(snap))


def test_read_says_incomplete_when_the_marker_names_points_that_are_gone(tenant):
    client = QdrantClient(":memory:")
    QdrantIndex(client).publish(snapshot(tenant, 2, [task(1)]), [])
    client.delete("tasks", models.FilterSelector(filter=models.Filter()))
    with pytest.raises(Unavailable) as caught:
        QdrantIndex(client).read(tenant)
    assert caught.value.reason == "INDEX_INCOMPLETE"


def test_every_call_says_unavailable_when_nothing_listens(tenant):
    index = QdrantIndex("http://127.0.0.1:9", timeout_seconds=1)
    snap = snapshot(tenant, 1, [task(1)])
    for call in (
        lambda: index.published(tenant),
        lambda: index.markers(),
        lambda: index.markers([tenant]),
        lambda: index.read(tenant),
        lambda: index.publish(snap, []),
        lambda: index.verify(snap, []),
    ):
        with pytest.raises(LorauterError) as caught:
            call()
        assert caught.value.reason == "INDEX_UNAVAILABLE"


def test_aliases_name_the_collections_of_the_encoder_when_published(tenant):
    client = QdrantClient(":memory:")
    index = QdrantIndex(client)
    index.publish(snapshot(tenant, 1, [task(1)]), [])
    index.publish(snapshot(tenant, 2, [task(1, dimension=4)], encoder=OTHER), [])
    held = {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}
    assert held == {
        "tasks": "lorauter-tasks-cdcdcdcdcdcd-v6",
        "examples": "lorauter-examples-cdcdcdcdcdcd-v6",
        "profiles": "lorauter-profiles-v6",
    }


def test_collections_go_when_no_tenant_is_of_their_encoder_any_more(tenant):
    client = QdrantClient(":memory:")
    index = QdrantIndex(client, prefix="mine-")
    QdrantIndex(client, prefix="theirs-").publish(snapshot(tenant, 1, [task(1)]), [])
    publish(index, snapshot(tenant, 1, [task(1)]))
    publish(index, snapshot(tenant + "-b", 1, [task(1)]))
    publish(index, snapshot(tenant, 2, [task(1, dimension=4)], encoder=OTHER))
    assert index.drop_former(unused_seconds=0) == 0
    publish(index, snapshot(tenant + "-b", 2, [task(1, dimension=4)], encoder=OTHER))
    assert index.drop_former(unused_seconds=3600) == 0
    assert index.drop_former(unused_seconds=0) == 2
    names = {collection.name for collection in client.get_collections().collections}
    assert {name for name in names if "abababababab" in name} == {"theirs-lorauter-tasks-abababababab-v6"} | {
        "theirs-lorauter-examples-abababababab-v6"
    }
    assert index.read(tenant).encoder_digest == OTHER
    publish(index, snapshot(tenant, 3, [task(1)]))
    assert index.read(tenant).encoder_digest == ENCODER


def test_markers_name_every_tenant_that_has_something_published(index, tenant):
    other, nobody = tenant + "-b", tenant + "-c"
    digests = {name: publish(index, snapshot(name, 3, [task(1)])).digest for name in (tenant, other)}
    found = index.markers()
    assert {name: found[name] for name in (tenant, other)} == {name: (3, digests[name]) for name in digests}
    assert nobody not in found
    assert index.markers([other, nobody]) == {other: (3, digests[other])}
    index.clear(other)
    assert other not in index.markers()
    assert index.markers([other]) == {}
    assert index.markers([tenant]) == {tenant: (3, digests[tenant])}


def test_markers_are_all_found_when_there_are_more_than_a_page(monkeypatch, tenant):
    monkeypatch.setattr("lorauter.index.collections.ID_BATCH", 2)
    index = QdrantIndex(QdrantClient(":memory:"))
    assert index.markers() == index.markers([tenant]) == {}
    names = {f"{tenant}-{number}" for number in range(5)}
    for name in names:
        index.publish(snapshot(name, 1, []), [])
    assert index.markers().keys() == names
    assert index.markers(sorted(names)).keys() == names


def test_snapshot_is_read_again_when_it_was_forgotten(index, tenant):
    publish(index, snapshot(tenant, 1, [task(1)]))
    held = index.read(tenant)
    index.forget(tenant)
    assert same(index.read(tenant), held)
