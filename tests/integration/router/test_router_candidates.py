"""Decisions on candidates that the index process finds, beside those on all tasks of the same pool."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from lorauter.encoder import Encoder
from lorauter.index import QdrantIndex, SnapshotIndex
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing import TaskExamples, fit_profile, represent, term_frequencies
from lorauter.routing.bm25 import terms_of
from lorauter.routing.model import Adapter, Affinity, Pool, Profile, Snapshot, Task
from lorauter_suite.embedded.index import index_process, index_url
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running
from tests.budgets import tries

CROWD = tries(1_200, 300)
PATIENT = {"search_timeout_seconds": 30.0}
"""The index process is slow where many tasks share words, and the machine may be busy."""


@dataclass(frozen=True)
class Demo:
    """The demo pool's tasks, tagged with skill and kind, a crowd of others around them, and test queries."""

    encoder: Encoder
    tasks: Sequence[Task]
    crowd: Sequence[Task]
    profile: Profile
    queries: Sequence[str]

    def snapshot(self, tenant: str, generation: int, tasks: Sequence[Task], *pools: str) -> Snapshot:
        """Every adapter's digest names tenant, pool and generation, so that a mixed answer shows."""
        made = {
            name: Pool(
                name,
                "base",
                (),
                "ROUTE",
                self.profile,
                tuple(tasks),
                tuple(
                    Adapter(task.task_id, 1, f"sha256:{tenant}-{name}-{generation}", True)
                    for task in self.tasks
                ),
                (),
            )
            for name in pools or ("demo",)
        }
        return Snapshot(tenant, generation, "", self.encoder.digest, made)


def _lines(path: Path) -> list[str]:
    return [json.loads(line)["input"] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def demo(encoder: Encoder, demo_pool: Path) -> Demo:
    folders = sorted((demo_pool / "tasks").iterdir())
    fitted, tasks, queries = [], [], []
    for number, folder in enumerate(folders):
        texts = _lines(folder / "validation.jsonl")
        vectors, made = encoder.encode(texts), represent(encoder.encode(texts), texts)
        each = tuple(terms_of(term_frequencies(text)) for text in texts)
        fitted.append(TaskExamples(folder.name, vectors, each, terms_of(made.terms)))
        others = [folders[(number + step) % len(folders)].name for step in (1, 5)]
        affinities = [Affinity(folder.name, 1, 0.9, 30, 0.05)]
        affinities += [Affinity(name, 1, 0.5 - 0.1 * step, 30, 0.05) for step, name in enumerate(others)]
        affinities.append(Affinity("base", 0, 0.1, 30, 0.05))
        tags = frozenset(folder.name.split("-"))
        tasks.append(
            Task(
                folder.name, 1, "exact_match", tags, len(texts), made.centroid, made.terms, tuple(affinities)
            )
        )
        queries += _lines(folder / "test.jsonl")[:2]
    draw = np.random.default_rng(3)
    crowd = []
    for number in range(CROWD):
        like = tasks[number % len(tasks)]
        noise = draw.normal(size=len(like.centroid)) * 0.75 / np.sqrt(len(like.centroid))
        kept = draw.choice(np.array(list(like.terms)), 20)
        terms = {int(term): like.terms[int(term)] for term in kept} | {1_000_000 + number: 5.0}
        crowd.append(
            Task(
                f"crowd-{number:04d}",
                1,
                "exact_match",
                frozenset({"crowd"}),
                20,
                (like.centroid + noise).astype(np.float32),
                terms,
                (Affinity("base", 0, 0.3, 20, 0.1),),
            )
        )
    return Demo(encoder, tasks, crowd, fit_profile(fitted), queries)


@pytest.fixture
def tenant() -> str:
    return f"c{uuid.uuid4().hex[:12]}"


@pytest.fixture
def index(qdrant_url: str) -> Iterator[QdrantIndex]:
    index = QdrantIndex(qdrant_url, timeout_seconds=30)
    yield index
    index.close()


def assert_same(found: pb.RouteResponse, exact: pb.RouteResponse, away: float = 1e-6) -> None:
    """Equal but for rounding, and for the probability that tasks ``away`` from the candidates may have."""
    assert exact.search == pb.SEARCH_KIND_EXACT
    assert found.search == pb.SEARCH_KIND_CANDIDATES
    assert (found.action, found.action_reason, found.generation) == (
        exact.action,
        exact.action_reason,
        exact.generation,
    )
    assert found.best_single.adapter_id == exact.best_single.adapter_id
    assert found.typicality == pytest.approx(exact.typicality, abs=1e-3)
    assert [a.adapter_id for a in found.adapters] == [a.adapter_id for a in exact.adapters]
    assert [a.weight for a in found.adapters] == pytest.approx([a.weight for a in exact.adapters], abs=away)
    probabilities = {match.task_id: match.probability for match in exact.tasks}
    for match in found.tasks:
        assert match.probability == pytest.approx(probabilities.get(match.task_id, 0.0), abs=away)


@pytest.mark.parametrize("strategy", ["default", "paper", "paper_tuned"])
@pytest.mark.parametrize("limit", [0, 10])
async def test_decisions_are_those_of_all_tasks_when_candidates_are_searched(
    demo: Demo, lab: Any, index: SnapshotIndex, tenant: str, strategy: str, limit: int
) -> None:
    index.publish(demo.snapshot(tenant, 4, demo.tasks), [])
    async with (
        lab.router_on(index, tenant=tenant) as exact,
        lab.router_on(index, tenant=tenant, exact_limit=limit, **PATIENT) as few,
    ):
        for query in demo.queries[::2]:
            fields = {"query": query, "strategy": strategy, "explain": True}
            answer = await few.route(**fields)
            assert_same(answer, await exact.route(**fields))
            assert answer.explanation.scored_tasks == len(demo.tasks)
            assert answer.best_single.digest == f"sha256:{tenant}-demo-4"


async def test_the_right_tasks_are_candidates_when_there_are_many_more(
    demo: Demo, lab: Any, index: SnapshotIndex, tenant: str
) -> None:
    everything = [*demo.tasks, *demo.crowd]
    index.publish(demo.snapshot(tenant, 1, everything), [])
    async with (
        lab.router_on(index, tenant=tenant) as exact,
        lab.router_on(index, tenant=tenant, exact_limit=300, **PATIENT) as few,
    ):
        requests = [pb.RouteRequest(query=query, explain=True) for query in demo.queries]
        batch = pb.RouteBatchRequest(requests=requests)
        wanted = (await exact.stub.RouteBatch(batch, timeout=60)).responses
        found = (await few.stub.RouteBatch(batch, timeout=120)).responses
        for answer, other in zip(found, wanted, strict=True):
            assert_same(answer, other, away=0.01)
            assert 0 < answer.explanation.scored_tasks < len(everything)
            assert other.explanation.scored_tasks == len(everything)
            assert answer.timings.search_ms > 0
            assert other.timings.search_ms == 0


@pytest.mark.parametrize("limit", [50_000, 0], ids=["exact", "candidates"])
async def test_only_tasks_with_all_tags_take_part_when_tags_are_given(
    demo: Demo, lab: Any, index: SnapshotIndex, tenant: str, limit: int
) -> None:
    index.publish(demo.snapshot(tenant, 1, demo.tasks), [])
    async with lab.router_on(index, tenant=tenant, exact_limit=limit, **PATIENT) as router:
        for tags in (["word"], ["code", "sort"], ["code", "nowhere"]):
            wanted = {task.task_id for task in demo.tasks if set(tags) <= task.tags}
            for query in demo.queries[::6]:
                answer = await router.route(query=query, tags=tags)
                assert {match.task_id for match in answer.tasks} == wanted
                assert sum(match.probability for match in answer.tasks) == pytest.approx(
                    1.0 if wanted else 0.0
                )
                barred = await router.route(query=query, tags=tags, exclude_tasks=["sort-code"])
                assert {match.task_id for match in barred.tasks} == wanted - {"sort-code"}


async def test_pools_and_tenants_are_apart_when_candidates_are_searched(
    demo: Demo, lab: Any, index: SnapshotIndex, tenant: str
) -> None:
    half = len(demo.tasks) // 2
    other = tenant + "-other"
    first = demo.snapshot(tenant, 2, demo.tasks[:half], "a")
    second = demo.snapshot(tenant, 2, demo.tasks[half:], "b")
    index.publish(replace(first, pools={**first.pools, **second.pools}), [])
    index.publish(demo.snapshot(other, 9, demo.tasks, "a"), [])
    async with (
        lab.router_on(index, tenant=tenant, exact_limit=0, **PATIENT) as mine,
        lab.router_on(index, tenant=other, exact_limit=0, **PATIENT) as theirs,
    ):
        for query in demo.queries[::4]:
            for pool, tasks in (("a", demo.tasks[:half]), ("b", demo.tasks[half:])):
                answer = await mine.route(query=query, pool=pool, explain=True)
                assert answer.search == pb.SEARCH_KIND_CANDIDATES
                assert answer.explanation.scored_tasks == half
                assert {match.task_id for match in answer.tasks} <= {task.task_id for task in tasks}
                assert {a.digest for a in answer.adapters} <= {f"sha256:{tenant}-{pool}-2", ""}
            answer = await theirs.route(query=query, explain=True)
            assert answer.explanation.scored_tasks == len(demo.tasks)
            assert {a.digest for a in answer.adapters} <= {f"sha256:{other}-a-9", ""}


async def test_all_tasks_are_scored_when_the_index_has_gone_on(
    demo: Demo, lab: Any, index: SnapshotIndex, tenant: str
) -> None:
    index.publish(demo.snapshot(tenant, 1, demo.tasks), [])
    async with lab.router_on(index, tenant=tenant, exact_limit=0, poll_seconds=60.0, **PATIENT) as router:
        assert (await router.route(query=demo.queries[0])).search == pb.SEARCH_KIND_CANDIDATES
        changed = [replace(task, version=2, affinities=()) for task in demo.tasks]
        index.publish(demo.snapshot(tenant, 2, changed), [])
        before = failures("INDEX_MOVED_ON")
        answer = await router.route(query=demo.queries[0], explain=True)
        assert answer.search == pb.SEARCH_KIND_EXACT
        assert answer.generation == lab.token(1, tenant)
        assert answer.best_single.digest == f"sha256:{tenant}-demo-1"
        assert answer.explanation.scored_tasks == len(demo.tasks)
        assert failures("INDEX_MOVED_ON") == before + 1


async def test_all_tasks_are_scored_when_the_index_is_halted_or_gone(
    demo: Demo, lab: Any, tenant: str
) -> None:
    port = free_port()
    with running(index_process(port)) as process:
        index = QdrantIndex(index_url(port), timeout_seconds=5)
        index.publish(demo.snapshot(tenant, 1, demo.tasks), [])
        settings = {"exact_limit": 0, "search_timeout_seconds": 2.0, "decision_cache": 0}
        async with lab.router_on(index, tenant=tenant, **settings) as router:
            answer = await router.route(query=demo.queries[0])
            assert answer.search == pb.SEARCH_KIND_CANDIDATES
            os.kill(process.pid, signal.SIGSTOP)
            try:
                slow = await router.route(query=demo.queries[0], explain=True)
                assert failures("SEARCH_TIMEOUT") >= 1
                again = await router.route(query=demo.queries[1], explain=True)
            finally:
                os.kill(process.pid, signal.SIGCONT)
            for exact in (slow, again):
                assert exact.search == pb.SEARCH_KIND_EXACT
                assert exact.explanation.scored_tasks == len(demo.tasks)
            assert slow.best_single == answer.best_single
            assert slow.timings.search_ms > 1_000 > again.timings.search_ms
            deadline = time.monotonic() + 30
            while (await router.route(query=demo.queries[0])).search != pb.SEARCH_KIND_CANDIDATES:
                assert time.monotonic() < deadline, "the index is not asked again"
            process.kill()
            process.wait()
            before = failures("INDEX_UNAVAILABLE")
            answer = await router.route(query=demo.queries[0])
            assert answer.search == pb.SEARCH_KIND_EXACT
            assert failures("INDEX_UNAVAILABLE") == before + 1


def failures(reason: str) -> float:
    """How many searches failed so."""
    name = "lorauter_router_search_failures_total"
    return REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0
