"""What gateways need of the router to serve a decision: runners-up, ranks, limits, policies, manifests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorauter.index import MemoryIndex
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.model import Affinity, Backend, Manifest, ManifestEntry, Serving
from lorauter.routing.replaying import pack_vector

RANKS = {"abacus": 16, "atlas": 8, "critic": 64}
MANIFESTS = (
    Manifest(
        "sha256:new", (ManifestEntry("mix-0123456789abcdef", (("sha256:1", 0.75), ("sha256:2", 0.25)), 32),)
    ),
    Manifest("sha256:old", (ManifestEntry("a" * 64, (("sha256:1", 1.0),), 16),)),
)


@pytest.fixture
def index(lab: Any) -> MemoryIndex:
    """The lab's pool with everything that the registry can say of serving; ``atlas`` is known everywhere."""
    snapshot = lab.snapshot(7)
    pool = snapshot.pools["p"]
    atlas = Affinity("atlas", 1, 0.4, 20, 0.1)
    tasks = tuple(
        task
        if task.affinities[0].adapter_id == "atlas"
        else replace(task, affinities=(*task.affinities, atlas))
        for task in pool.tasks
    )
    pool = replace(
        pool,
        tasks=tasks,
        adapters=tuple(replace(each, rank=RANKS[each.adapter_id]) for each in pool.adapters),
        backends=(*pool.backends, Backend("vllm", "vllm", "dns+http://v:1", True, 8, 64, 128, "/models", 2)),
        serving=Serving(refuse_degraded=True, compose_on_demand=True),
        manifests=MANIFESTS,
    )
    index = MemoryIndex()
    index.publish(replace(snapshot, pools={"p": pool}), [])
    return index


async def test_runners_up_are_who_else_may_serve_best_first(lab: Any, index: MemoryIndex) -> None:
    async with lab.router_on(index) as router:
        response = await router.route(explain=True)
    assert (response.best_single.adapter_id, response.best_single.rank) == ("abacus", 16)
    assert {each.adapter_id: each.rank for each in response.adapters}["abacus"] == 16
    named = [each.adapter_id for each in response.runners_up]
    assert sorted(named) == ["atlas", "base", "critic"]
    candidates = {each.adapter_id: each.expected_utility for each in response.explanation.candidates}
    assert named == sorted(named, key=lambda name: -candidates[name])
    for each in response.runners_up:
        wanted = ("", 0, 0) if each.adapter_id == "base" else (
            lab.digest_of(each.adapter_id, 7), 1, RANKS[each.adapter_id]
        )  # fmt: skip
        assert (each.digest, each.version, each.rank) == wanted
        assert each.expected_utility == candidates[each.adapter_id]


async def test_batches_and_replays_name_the_same_runners_up(lab: Any, index: MemoryIndex) -> None:
    (vector,) = lab.encoder.encode([lab.query])
    async with lab.router_on(index) as router:
        routed = await router.route()
        batch = pb.RouteBatchRequest(requests=[pb.RouteRequest(query=lab.query)])
        (batched,) = (await router.stub.RouteBatch(batch, timeout=30)).responses
        recorded = pb.RecordedQuery(vector=pack_vector(vector))
        (replayed,) = (await router.stub.Replay(pb.ReplayRequest(queries=[recorded]), timeout=30)).responses
    assert list(batched.runners_up) == list(routed.runners_up)
    assert {each.adapter_id for each in replayed.runners_up} == {
        each.adapter_id for each in routed.runners_up
    }
    assert replayed.best_single.rank == routed.best_single.rank == 16


async def test_runners_up_leave_out_what_the_request_excludes(lab: Any, index: MemoryIndex) -> None:
    async with lab.router_on(index) as router:
        response = await router.route(exclude_adapters=["atlas"])
        base = await router.route(exclude_adapters=list(RANKS))
    assert {each.adapter_id for each in response.runners_up} == {"base", "critic"}
    assert (base.action, list(base.runners_up)) == (pb.ROUTE_ACTION_BASE, [])


async def test_snapshot_shows_limits_policy_and_manifests(lab: Any, index: MemoryIndex) -> None:
    async with lab.router_on(index) as router:
        (pool,) = (await router.stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=30)).pools
    plain, vllm = pool.backends
    assert (plain.adapters_path, plain.adapter_slots, plain.shards) == ("/adapters", 0, 0)
    assert vllm == pb.Backend(
        backend_id="vllm",
        kind="vllm",
        url="dns+http://v:1",
        draining=True,
        adapter_slots=8,
        max_rank=64,
        max_concurrent_requests=128,
        adapters_path="/models",
        shards=2,
    )
    assert pool.serving == pb.ServingPolicy(refuse_degraded=True, compose_on_demand=True)
    assert [manifest.digest for manifest in pool.manifests] == ["sha256:new", "sha256:old"]
    assert pool.manifests[0].entries[0] == pb.ManifestEntry(
        name="mix-0123456789abcdef",
        rank=32,
        members=[
            pb.ManifestMember(digest="sha256:1", weight=0.75),
            pb.ManifestMember(digest="sha256:2", weight=0.25),
        ],
    )


async def test_pinned_adapter_is_resolved_with_its_rank(lab: Any, index: MemoryIndex) -> None:
    async with lab.router_on(index) as router:
        request = pb.ResolveAdapterRequest(adapter="critic")
        assert (await router.stub.ResolveAdapter(request, timeout=30)).rank == 64
