"""One contract of searching for every index: in memory, local mode, the index process, a real server."""

import os
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from lorauter.errors import LorauterError
from lorauter.index import MemoryIndex, QdrantIndex, Search, SnapshotIndex
from lorauter.routing.bm25 import NO_TERMS, terms_of
from lorauter.routing.candidates import Probe
from lorauter.routing.model import Pool, Profile, Snapshot, Task

KINDS = ["memory", "local", "process", *(["server"] if os.environ.get("QDRANT_URL") else [])]
ENCODER, OTHER = "sha256:" + "5e" * 32, "sha256:" + "5f" * 32
TASKS, DIMENSION = 60, 16


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
    return f"s{uuid.uuid4().hex[:12]}"


def task(number: int, seed: int = 0, version: int = 1) -> Task:
    draw = np.random.default_rng([number, seed, version])
    terms = {int(term): float(draw.integers(1, 9)) for term in draw.choice(40, 6, replace=False)}
    tags = {"even" if number % 2 == 0 else "odd", "third" if number % 3 == 0 else "rest"}
    centroid = draw.normal(size=DIMENSION).astype(np.float32)
    return Task(f"t{number:02d}", version, "exact_match", frozenset(tags), 3, centroid, terms, ())


def pool(pool_id: str, tasks) -> Pool:
    return Pool(pool_id, "base", (), "ROUTE", Profile("sha256:p", {}), tuple(tasks), (), ())


def snapshot(tenant: str, generation: int, tasks, encoder: str = ENCODER) -> Snapshot:
    """The tasks in one pool, and others of the same names beside them in another."""
    others = [task(number, seed=1) for number in range(10)]
    pools = {"main": pool("main", tasks), "other": pool("other", others)}
    return Snapshot(tenant, generation, "", encoder, pools)


@pytest.fixture
def published(index, tenant) -> Snapshot:
    index.publish(snapshot(tenant, 1, [task(number) for number in range(TASKS)]), [])
    return index.read(tenant)


QUERY = np.random.default_rng(9).normal(size=DIMENSION).astype(np.float32)
TERMS = terms_of({3: 1.0, 11: 0.5, 27: 2.0})


def search(tenant: str, dense=(QUERY,), terms=TERMS, **fields: Any) -> Search:
    asked = Search(tenant, ENCODER, "main", Probe(tuple(dense), terms), limit=5)
    return replace(asked, **fields)


def nearest(tasks, vector, limit: int = 5) -> set[tuple[str, str]]:
    chosen = sorted(tasks, key=lambda t: -float(t.centroid @ vector))[:limit]
    return {(t.task_id, t.address) for t in chosen}


def test_the_nearest_are_found_when_one_vector_is_searched_with(index, tenant, published):
    found = index.search(search(tenant, terms=NO_TERMS))
    assert found.tasks == nearest(published.pools["main"].tasks, QUERY)
    assert found.root == published.digest


def test_tasks_with_the_terms_are_found_when_words_are_searched_with(index, tenant, published):
    products = {
        (t.task_id, t.address): sum(TERMS[term] * t.terms[term] for term in TERMS if term in t.terms)
        for t in published.pools["main"].tasks
    }
    found = index.search(search(tenant, dense=())).tasks
    assert len(found) == 5
    least = min(products[key] for key in found)
    assert least > 0
    assert least >= sorted(products.values(), reverse=True)[4]


def test_no_task_is_found_when_none_has_the_terms(index, tenant, published):
    assert index.search(search(tenant, dense=(), terms=terms_of({4_294_967_295: 1.0}))).tasks == frozenset()


def test_all_searches_are_answered_together_when_several_are_asked_for(index, tenant, published):
    both = index.search(search(tenant, dense=(QUERY, -QUERY))).tasks
    apart = [index.search(search(tenant, dense=(v,), terms=NO_TERMS)).tasks for v in (QUERY, -QUERY)]
    assert both == apart[0] | apart[1] | index.search(search(tenant, dense=())).tasks
    assert len(both) > 10


@pytest.mark.parametrize("tags", [{"even"}, {"odd", "third"}, {"nowhere"}])
def test_only_tasks_with_all_tags_are_found_when_tags_are_given(index, tenant, published, tags):
    carrying = [t for t in published.pools["main"].tasks if tags <= t.tags]
    found = index.search(search(tenant, terms=NO_TERMS, tags=frozenset(tags))).tasks
    assert found == nearest(carrying, QUERY)
    assert {name for name, _ in index.search(search(tenant, tags=frozenset(tags))).tasks} <= {
        t.task_id for t in carrying
    }


def test_excluded_tasks_make_room_for_others_when_searched(index, tenant, published):
    tasks = published.pools["main"].tasks
    excluded = frozenset(name for name, _ in nearest(tasks, QUERY))
    found = index.search(search(tenant, terms=NO_TERMS, exclude_tasks=excluded)).tasks
    assert found == nearest([t for t in tasks if t.task_id not in excluded], QUERY)


def test_pools_and_tenants_are_apart_when_searched(index, tenant, published):
    other = tenant + "-other"
    index.publish(snapshot(other, 4, [task(number, seed=2) for number in range(8)]), [])
    mine = {t.address for t in published.pools["main"].tasks}
    theirs = index.read(other)
    everything = {"terms": NO_TERMS, "limit": 500}
    assert {address for _, address in index.search(search(tenant, **everything)).tasks} == mine
    found = index.search(search(tenant, pool_id="other", **everything))
    assert {address for _, address in found.tasks} == {t.address for t in published.pools["other"].tasks}
    assert index.search(search(tenant, pool_id="none", **everything)).tasks == frozenset()
    found = index.search(search(other, **everything))
    assert found.root == theirs.digest
    assert {address for _, address in found.tasks} == {t.address for t in theirs.pools["main"].tasks}


def test_the_root_tells_that_the_index_went_on_when_a_newer_generation_is_published(index, tenant, published):
    changed = [task(number, version=2 if number < 30 else 1) for number in range(TASKS)]
    index.publish(snapshot(tenant, 2, changed), [])
    found = index.search(search(tenant, terms=NO_TERMS, limit=500))
    newest = index.read(tenant)
    assert found.root == newest.digest != published.digest
    assert found.tasks == {(t.task_id, t.address) for t in newest.pools["main"].tasks}


def test_tasks_of_another_encoder_are_not_found_when_it_took_over(index, tenant, published):
    turned = [replace(task(number), centroid=task(number).centroid[::-1].copy()) for number in range(TASKS)]
    index.publish(snapshot(tenant, 2, turned, encoder=OTHER), [])
    found = index.search(search(tenant, encoder_digest=OTHER, terms=NO_TERMS))
    assert found.tasks == nearest(index.read(tenant).pools["main"].tasks, QUERY)
    assert found.root == index.read(tenant).digest
    late = index.search(search(tenant))
    assert late.root != published.digest


def test_search_says_that_nothing_is_published_when_the_index_is_empty(index, tenant):
    with pytest.raises(LorauterError) as caught:
        index.search(search(tenant, encoder_digest="sha256:" + uuid.uuid4().hex * 2))
    assert caught.value.reason == "INDEX_EMPTY"


def test_search_says_unavailable_when_nothing_listens(tenant):
    with pytest.raises(LorauterError) as caught:
        QdrantIndex("http://127.0.0.1:9", timeout_seconds=1).search(search(tenant))
    assert caught.value.reason == "INDEX_UNAVAILABLE"


def test_search_says_unavailable_when_the_tasks_are_gone_but_the_marker_is_not(tenant):
    client = QdrantClient(":memory:")
    index = QdrantIndex(client)
    index.publish(snapshot(tenant, 1, [task(1)]), [])
    client.delete_collection("lorauter-tasks-5e5e5e5e5e5e-v6")
    with pytest.raises(LorauterError) as caught:
        index.search(search(tenant))
    assert caught.value.reason == "INDEX_UNAVAILABLE"
