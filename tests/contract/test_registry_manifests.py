"""Pool manifests over both transports: proposed from what was measured, published, listed, and refused."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import insert, text
from sqlmodel import Session, select

from lorauter.lora.recipe import Base, make_recipe
from lorauter.lora.servers import tgi
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.store import tables
from lorauter.store.manifest_rows import KEPT

ENTRY_BYTES = 8 * (8 + 8) * 2
"""Of the tiny pool's adapters: rank 2, which TGI pads to 8, on one layer of (8, 8)."""


async def make(served: Any, adapters: str = "ab", measured: bool = True) -> None:
    """Gives the registry pool ``p`` with tasks ``t`` and ``u``, and adapters, each the best of one."""
    rpc, files = served.rpc, served.files
    base = str(files.base())
    await rpc.CreatePool(pb.CreatePoolRequest(id="p", base_model=files.base_model, base_path=base))
    for task in "tu":
        await rpc.CreateTask(pb.CreateTaskRequest(id=task, pool="p", metric="exact_match"))
        put = await served.http.put(
            f"/v1/tasks/{task}/validation-set", content=b'{"input": "1", "target": "2"}'
        )
        assert put.status_code == 200
    rows = [pb.Affinity(task_id=task, adapter_id="base", score=0.1, count=20) for task in "tu"]
    for number, name in enumerate(adapters):
        path = str(files.adapter(name, seed=number))
        await rpc.RegisterAdapter(pb.RegisterAdapterRequest(id=name, pool="p", path=path))
        row = pb.Affinity(task_id="tu"[number % 2], adapter_id=name, score=0.9 - number / 10, count=20)
        rows.append(row)
    if measured:
        await rpc.ImportAffinities(pb.ImportAffinitiesRequest(affinities=rows))


async def propose(served: Any, **fields: Any) -> pb.PoolManifest:
    return await served.rpc.ProposePoolManifest(
        pb.ProposePoolManifestRequest(pool="p", **{"memory_bytes": 10_000, **fields})
    )


async def publish(served: Any, digest: str, **fields: Any) -> pb.PoolManifest:
    return await served.rpc.PublishPoolManifest(
        pb.PublishPoolManifestRequest(pool="p", digest=digest, **fields)
    )


async def listed(served: Any) -> list[pb.PoolManifest]:
    request, found = pb.ListPoolManifestsRequest(pool="p", page_size=7), []
    while True:
        page = await served.rpc.ListPoolManifests(request)
        found.extend(page.manifests)
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def refusal(served: Any, rpc: str, request: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(served.rpc, rpc)(request)
    details = dict(caught.value.trailing_metadata() or {})["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return caught.value.code(), info.reason, dict(info.metadata)


def owed(served: Any) -> list[str]:
    with Session(served.registry.context.engine) as session:
        return [row.key for row in session.exec(select(tables.Outbox)) if row.topic == "index"]


async def generation(served: Any) -> str:
    return (await served.rpc.GetGeneration(pb.GetGenerationRequest())).generation


async def test_a_proposal_says_what_to_load_and_changes_nothing(served: Any) -> None:
    await make(served)
    before, work = await generation(served), owed(served)
    found = await propose(served)
    assert (await generation(served), owed(served)) == (before, work)
    assert (found.published, found.HasField("publish_time"), found.memory_bytes) == (False, False, 10_000)
    assert found.expected_share == 1.0
    assert found.published_share == pytest.approx((0.1 / 0.9 + 0.1 / 0.8) / 2, abs=1e-6)
    assert [entry.members[0].adapter_id for entry in found.entries] == ["a", "b"]
    assert {(entry.rank, entry.size_bytes) for entry in found.entries} == {(8, ENTRY_BYTES)}
    assert found.size_bytes == 2 * ENTRY_BYTES
    assert not found.adapters, "TGI would pad their rank, so none is loaded as it is"
    base = Base("tiny/base", found_pool(served).weights_digest, {served.files.module: (8, 8)})
    for entry in found.entries:
        (member,) = entry.members
        assert (member.version, member.weight) == (1, 1.0)
        assert entry.name == make_recipe(base, [(member.digest, 1.0)], tgi()).name
    names = [entry.name for entry in found.entries]
    assert found.lora_adapters == ",".join(f"{name}=/adapters/{name}" for name in names)
    assert list(found.launcher_arguments) == ["--cuda-graphs", "0"]


def found_pool(served: Any) -> tables.Pool:
    with Session(served.registry.context.engine) as session:
        pool = session.get(tables.Pool, ("default", "p"))
        assert pool is not None
        return pool


async def test_rest_proposes_publishes_and_lists_the_same(served: Any) -> None:
    await make(served)
    over_grpc = await propose(served, memory_bytes=ENTRY_BYTES)
    answer = await served.http.post("/v1/pools/p/manifests", json={"memory_bytes": ENTRY_BYTES})
    assert answer.status_code == 201
    body = answer.json()
    assert (body["digest"], len(body["entries"]), len(body["left_out"])) == (over_grpc.digest, 1, 1)
    assert body["left_out"][0]["members"][0]["adapter_id"] == "b"
    answer = await served.http.post(f"/v1/pools/p/manifests/{body['digest']}/publish")
    assert answer.json()["published"] is True
    (one,) = (await served.http.get("/v1/pools/p/manifests")).json()["manifests"]
    assert one == answer.json()
    assert [manifest.published for manifest in await listed(served)] == [True]


async def test_publishing_makes_a_generation_that_the_index_owes(served: Any) -> None:
    await make(served)
    found = await propose(served)
    with served.registry.context.engine.begin() as connection:
        connection.execute(text("DELETE FROM outbox"))
    before = await generation(served)
    first = await publish(served, found.digest, request_id="once")
    assert await publish(served, found.digest, request_id="once") == first
    after = await generation(served)
    assert (after != before, owed(served)) == (True, ["p"])
    again = await publish(served, found.digest)
    assert (again.publish_time, await generation(served)) == (first.publish_time, after)
    assert not first.HasField("write_time"), "its composites are not in the store yet"


async def test_a_manifest_without_composites_is_announced_at_once(served: Any) -> None:
    await make(served)
    nothing = await propose(served, memory_bytes=1)
    assert not nothing.entries
    assert {each.reason for each in nothing.left_out} == {
        f"it takes {ENTRY_BYTES} bytes, more than the 1 there are"
    }
    assert (await publish(served, nothing.digest)).HasField("write_time")


async def test_an_earlier_manifest_is_published_again(served: Any) -> None:
    await make(served)
    small, large = await propose(served, memory_bytes=ENTRY_BYTES), await propose(served)
    for digest in (small.digest, large.digest, small.digest):
        await publish(served, digest)
        assert [one.digest for one in await listed(served) if one.published] == [digest]
    worth = await propose(served)
    assert worth.published_share == pytest.approx(small.expected_share)


async def test_a_proposal_of_the_same_content_is_the_same_manifest(served: Any) -> None:
    await make(served)
    first = await propose(served, request_id="r")
    assert await propose(served, request_id="r") == first
    again = await propose(served, memory_bytes=20_000)
    assert (again.digest, again.memory_bytes) == (first.digest, 20_000)
    assert len(await listed(served)) == 1
    status, reason, _ = await refusal(
        served,
        "ProposePoolManifest",
        pb.ProposePoolManifestRequest(pool="p", memory_bytes=1, request_id="r"),
    )
    assert (status, reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_old_proposals_are_forgotten_and_published_ones_kept(served: Any) -> None:
    await make(served)
    published = await propose(served)
    await publish(served, published.digest)
    row = {"tenant": "default", "pool": "p", "entries": [], "left_out": [], "shards": 1, "memory_bytes": 1}
    shares = {"expected_share": 0.5, "published_share": 0.5}
    rows = [{**row, **shares, "digest": f"sha256:{number:064x}"} for number in range(KEPT + 5)]
    with served.registry.context.engine.begin() as connection:
        connection.execute(insert(tables.PoolManifest), rows)
    newest = await propose(served, memory_bytes=1)
    found = [manifest.digest for manifest in await listed(served)]
    assert found[0] == newest.digest
    assert published.digest in found
    assert len(found) == KEPT + 1


async def test_traffic_decides_where_there_is_room_for_one(served: Any) -> None:
    await make(served)
    alone = await propose(served, memory_bytes=ENTRY_BYTES)
    assert alone.entries[0].members[0].adapter_id == "a"
    await decided(served, "u", 2_000)
    busy = await propose(served, memory_bytes=ENTRY_BYTES)
    assert busy.entries[0].members[0].adapter_id == "b"


async def decided(served: Any, task: str, count: int) -> None:
    """Records so many decisions on a task."""
    decision = {
        **dict.fromkeys(("strategy", "profile_digest", "encoder_digest", "action", "text_digest"), "x"),
        **{"tenant": "default", "pool": "p", "generation": 1, "stale": False, "best_adapter": "b"},
        **{"best_version": 1, "expected_utility": 1.0, "typicality": 1.0, "adapters": [], "options": {}},
        **{"vector": b"", "terms": b"", "text": ""},
        "tasks": [{"task_id": task, "similarity": 1.0, "probability": 1.0}],
        "time": "2030-01-31T12:00:00Z",
    }
    rows = [{**decision, "id": f"{number:032x}"} for number in range(count)]
    with served.registry.context.engine.begin() as connection:
        connection.execute(insert(tables.Decision), rows)


async def test_a_composition_that_won_is_an_entry_of_its_own(served: Any) -> None:
    await make(served)
    digests = {
        name: (await served.rpc.GetAdapter(pb.GetAdapterRequest(id=name))).latest.digest for name in "ab"
    }
    members = [
        {"adapter_id": name, "version": 1, "digest": digests[name], "weight": weight}
        for name, weight in (("a", 0.6), ("b", 0.4))
    ]
    row = {
        **{"tenant": "default", "task_id": "t", "task_version": 1, "name": "mix-1", "metric": "exact_match"},
        **{"metric_version": 1, "prompt_digest": "x", "members": members, "score": 0.97, "count": 20},
        **{"standard_error": 0.1, "gain": 0.05, "gain_error": 0.01},
    }
    with served.registry.context.engine.begin() as connection:
        connection.execute(insert(tables.Composition), [row])
    found = await propose(served)
    sets = [[(m.adapter_id, m.weight) for m in entry.members] for entry in found.entries]
    assert sorted(sets) == [[("a", 0.6), ("b", 0.4)], [("b", 1.0)]]
    assert found.expected_share == 1.0
    assert found.entries[0].name.startswith("mix-")


async def test_shards_and_the_path_come_from_the_pools_tgi_backends(served: Any) -> None:
    await make(served)
    for name, limits in (("x", {"shards": 1, "adapters_path": "/first"}), ("y", {"shards": 2})):
        request = pb.RegisterBackendRequest(
            id=name, pool="p", kind=pb.BACKEND_KIND_TGI, url="http://t:1", limits=pb.BackendLimits(**limits)
        )
        await served.rpc.RegisterBackend(request)
    found = await propose(served)
    assert {entry.rank for entry in found.entries} == {16}
    assert "=/first/mix-" in found.lora_adapters


async def test_a_manifest_of_a_recalled_adapter_is_not_published(served: Any) -> None:
    await make(served)
    found = await propose(served)
    recall = {"reason": "it swears"}
    assert (await served.http.post("/v1/adapters/b/disable", json=recall)).status_code == 200
    before = await generation(served)
    asked = pb.PublishPoolManifestRequest(pool="p", digest=found.digest)
    status, reason, metadata = await refusal(served, "PublishPoolManifest", asked)
    assert (status, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MANIFEST_ADAPTER_NOT_ACTIVE")
    assert metadata == {"adapter": "b", "version": "1"}
    answer = await served.http.post(f"/v1/pools/p/manifests/{found.digest}/publish")
    assert (answer.status_code, answer.json()["reason"]) == (412, "MANIFEST_ADAPTER_NOT_ACTIVE")
    assert await generation(served) == before
    assert [entry.members[0].adapter_id for entry in (await propose(served)).entries] == ["a"]


async def test_what_cannot_be_proposed_or_published_is_refused_with_its_reason(served: Any) -> None:
    await make(served, measured=False)
    proposal, publication = "ProposePoolManifest", "PublishPoolManifest"
    missing, failed = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    await served.rpc.CreatePool(pb.CreatePoolRequest(id="bare", base_model="some/base"))
    for rpc, fields, status, reason in (
        (proposal, {"pool": "nil", "memory_bytes": 1}, missing, "POOL_NOT_FOUND"),
        (proposal, {"pool": "p"}, failed, "MANIFEST_MEMORY_REQUIRED"),
        (proposal, {"pool": "p", "memory_bytes": 1}, failed, "NOTHING_MEASURED"),
        (proposal, {"pool": "p", "memory_bytes": -1}, invalid, "INVALID_FIELD"),
        (proposal, {"pool": "bare", "memory_bytes": 1}, failed, "POOL_MODULES_UNKNOWN"),
        (publication, {"pool": "nil", "digest": "x"}, missing, "POOL_NOT_FOUND"),
        (publication, {"pool": "p", "digest": "x"}, missing, "MANIFEST_NOT_FOUND"),
        (publication, {"pool": "p"}, invalid, "MISSING_FIELD"),
        ("ListPoolManifests", {"pool": "nil"}, missing, "POOL_NOT_FOUND"),
    ):
        request = getattr(pb, f"{rpc}Request")(**fields)
        found = await refusal(served, rpc, request)
        assert found[:2] == (status, reason), (rpc, fields)
    answer = await served.http.post("/v1/pools/p/manifests", content=b"")
    assert (answer.status_code, answer.json()["reason"]) == (412, "MANIFEST_MEMORY_REQUIRED")
    assert (await served.http.get("/v1/pools/p/manifests?page_token=x")).status_code == 400


async def test_the_pools_policy_says_how_much_memory_there_is(served: Any) -> None:
    await make(served)
    serving = {"serving": {"manifest_memory_bytes": ENTRY_BYTES}}
    assert (await served.http.patch("/v1/pools/p", json=serving)).status_code == 200
    found = await propose(served, memory_bytes=0)
    assert (found.memory_bytes, len(found.entries)) == (ENTRY_BYTES, 1)


async def test_another_pools_tasks_and_adapters_have_no_part_in_it(served: Any) -> None:
    await make(served)
    before = await propose(served)
    rpc, files = served.rpc, served.files
    base = str(files.base())
    await rpc.CreatePool(pb.CreatePoolRequest(id="q", base_model=files.base_model, base_path=base))
    await rpc.CreateTask(pb.CreateTaskRequest(id="v", pool="q", metric="exact_match"))
    await served.http.put("/v1/tasks/v/validation-set", content=b'{"input": "1", "target": "2"}')
    await rpc.RegisterAdapter(
        pb.RegisterAdapterRequest(id="c", pool="q", path=str(files.adapter("c", seed=9)))
    )
    rows = [pb.Affinity(task_id="v", adapter_id=name, score=0.5, count=9) for name in ("base", "c")]
    await rpc.ImportAffinities(pb.ImportAffinitiesRequest(affinities=rows))
    after = await propose(served)
    assert (after.digest, after.expected_share) == (before.digest, before.expected_share)
    assert after.published_share == before.published_share
