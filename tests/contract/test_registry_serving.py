"""What backends can do and how pools are served: kept, compared and refused alike over both transports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from lorauter.registry.v1 import registry_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "http://localhost:1"
LIMITS: dict[str, Any] = {
    "adapter_slots": 8,
    "max_rank": 64,
    "max_concurrent_requests": 128,
    "adapters_path": "/models/adapters",
    "shards": 4,
}
NO_LIMITS = {
    "adapter_slots": 0,
    "max_rank": 0,
    "max_concurrent_requests": 0,
    "adapters_path": "",
    "shards": 0,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(shared: Any) -> Any:
    """The registry with pool ``p``."""
    await shared.rpc.CreatePool(pb.CreatePoolRequest(id="p", base_model="tiny/base"))
    return shared


@pytest_asyncio.fixture(loop_scope="module")
async def unchanged(pool: Any) -> AsyncIterator[None]:
    """Checks that the test left the registry as it was."""
    before = await generation(pool)
    yield
    assert await generation(pool) == before


async def generation(served: Any) -> str:
    return str((await served.rpc.GetGeneration(pb.GetGenerationRequest())).generation)


async def register_over_grpc(served: Any, name: str, fields: dict[str, Any]) -> pb.Backend:
    kind = f"BACKEND_KIND_{fields['kind']}"
    request = json_format.ParseDict(
        {**fields, "id": name, "pool": "p", "kind": kind}, pb.RegisterBackendRequest()
    )
    answer: pb.Backend = await served.rpc.RegisterBackend(request)
    return answer


async def refusal_over_grpc(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """Returns status, reason and field of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_details_pb2.ErrorInfo()
    details = dict(caught.value.trailing_metadata() or {})["grpc-status-details-bin"]
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return caught.value.code(), info.reason, info.metadata["field"]


async def refusal_over_rest(served: Any, method: str, path: str, body: Any) -> tuple[int, str, str]:
    """Returns status, reason and field of a call that must fail."""
    answer = await served.http.request(method, path, json=body)
    problem = answer.json()
    assert problem["detail"]
    return answer.status_code, problem["reason"], problem["metadata"]["field"]


async def test_limits_are_answered_and_listed_as_registered(pool: Any) -> None:
    body = {"pool": "p", "kind": "TGI", "url": URL, "limits": LIMITS}
    put = (await pool.http.put("/v1/backends/tgi", json=body)).json()
    assert put["limits"] == LIMITS
    listed = (await pool.rpc.ListBackends(pb.ListBackendsRequest(pool="p"))).backends
    (found,) = (backend for backend in listed if backend.id == "tgi")
    assert found.limits == pb.BackendLimits(**LIMITS)


async def test_limits_are_all_default_when_none_are_given(pool: Any) -> None:
    found = await register_over_grpc(pool, "plain", {"kind": "VLLM", "url": URL})
    assert found.HasField("limits")
    assert found.limits == pb.BackendLimits()
    listed = (await pool.http.get("/v1/backends", params={"pool": "p"})).json()["backends"]
    assert [backend["limits"] for backend in listed if backend["id"] == "plain"] == [NO_LIMITS]


async def test_registering_the_same_limits_changes_nothing_and_others_do(pool: Any) -> None:
    fields = {"kind": "TGI", "url": URL, "limits": LIMITS}
    first = await register_over_grpc(pool, "same", fields)
    before = await generation(pool)
    again = await pool.http.put("/v1/backends/same", json={"pool": "p", **fields})
    assert again.json()["etag"] == first.etag
    assert await generation(pool) == before
    changed = await register_over_grpc(pool, "same", {**fields, "limits": {**LIMITS, "max_rank": 128}})
    assert changed.etag != first.etag
    assert changed.limits.max_rank == 128
    assert await generation(pool) != before
    bare = await register_over_grpc(pool, "same", {"kind": "TGI", "url": URL})
    assert bare.limits == pb.BackendLimits()


async def test_every_address_of_a_name_can_be_a_replica(pool: Any) -> None:
    found = await register_over_grpc(
        pool, "headless", {"kind": "TGI", "url": "dns+http://tgi.models.svc:8080/"}
    )
    assert found.url == "dns+http://tgi.models.svc:8080"


async def test_trailing_slashes_of_the_adapters_path_do_not_count(pool: Any) -> None:
    found = await register_over_grpc(
        pool, "slash", {"kind": "TGI", "url": URL, "limits": {"adapters_path": "/a/b//"}}
    )
    assert found.limits.adapters_path == "/a/b"


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("kind", "limits", "field"),
    [
        ("ENGINE", {"adapter_slots": -1}, "limits.adapter_slots"),
        ("VLLM", {"max_concurrent_requests": -1}, "limits.max_concurrent_requests"),
        ("ENGINE", {"max_rank": -8}, "limits.max_rank"),
        ("VLLM", {"max_rank": 24}, "limits.max_rank"),
        ("TGI", {"max_rank": 256}, "limits.max_rank"),
        ("TGI", {"max_rank": 16, "shards": 4}, "limits.max_rank"),
        ("TGI", {"shards": 17}, "limits.shards"),
        ("VLLM", {"shards": -1}, "limits.shards"),
        ("VLLM", {"adapters_path": "adapters"}, "limits.adapters_path"),
        ("TGI", {"adapters_path": "/a=b"}, "limits.adapters_path"),
        ("TGI", {"adapters_path": "/a@b"}, "limits.adapters_path"),
        ("TGI", {"adapters_path": "/a,b"}, "limits.adapters_path"),
        ("TGI", {"adapters_path": "/a\nb"}, "limits.adapters_path"),
        ("TGI", {"adapters_path": "/" + "a" * 1_024}, "limits.adapters_path"),
    ],
)
async def test_limits_that_no_server_has_are_refused(
    pool: Any, kind: str, limits: dict[str, Any], field: str
) -> None:
    fields = {"kind": kind, "url": URL, "limits": limits}
    over_grpc = await refusal_over_grpc(register_over_grpc(pool, "bad", fields))
    assert over_grpc == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field)
    over_rest = await refusal_over_rest(pool, "PUT", "/v1/backends/bad", {"pool": "p", **fields})
    assert over_rest == (400, "INVALID_FIELD", field)


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        ("ENGINE", {"max_rank": 24}),
        ("VLLM", {"max_rank": 320, "shards": 3}),
        ("TGI", {"max_rank": 8}),
        ("TGI", {"max_rank": 128, "shards": 16}),
    ],
)
async def test_limits_that_servers_have_are_taken(pool: Any, kind: str, limits: dict[str, Any]) -> None:
    found = await register_over_grpc(pool, "good", {"kind": kind, "url": URL, "limits": limits})
    assert found.limits == pb.BackendLimits(**limits)


@pytest.mark.usefixtures("unchanged")
async def test_encrypted_replicas_behind_a_name_are_refused_and_told_why(pool: Any) -> None:
    body = {"pool": "p", "kind": "VLLM", "url": "dns+https://vllm:8000"}
    answer = await pool.http.put("/v1/backends/bad", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "INVALID_URL")
    assert "certificate is for a name" in answer.json()["detail"]
    over_grpc = await refusal_over_grpc(register_over_grpc(pool, "bad", body))
    assert over_grpc == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_URL", "url")


async def test_pool_degrades_and_publishes_nothing_by_itself_when_nothing_is_said(pool: Any) -> None:
    found = (await pool.http.get("/v1/pools/p")).json()
    assert found["serving"] == {
        "fallback": "DEGRADE",
        "compose_on_demand": False,
        "manifest_policy": "MANUAL",
        "manifest_memory_bytes": 0,
    }


async def test_serving_is_created_kept_and_replaced_as_a_whole(pool: Any) -> None:
    wanted = pb.ServingPolicy(
        fallback=pb.FALLBACK_REFUSE,
        compose_on_demand=True,
        manifest_policy=pb.MANIFEST_POLICY_AUTO,
        manifest_memory_bytes=2**40,
    )
    request = pb.CreatePoolRequest(id="served", base_model="tiny/base", serving=wanted)
    assert (await pool.rpc.CreatePool(request)).serving == wanted
    described = await pool.rpc.UpdatePool(pb.UpdatePoolRequest(id="served", description="d"))
    assert described.serving == wanted
    answer = await pool.http.patch("/v1/pools/served", json={"serving": {"manifest_policy": "AUTO"}})
    assert answer.json()["serving"] == {
        "fallback": "DEGRADE",
        "compose_on_demand": False,
        "manifest_policy": "AUTO",
        "manifest_memory_bytes": 0,
    }
    emptied = pb.UpdatePoolRequest(id="served", serving=pb.ServingPolicy())
    reset = (await pool.rpc.UpdatePool(emptied)).serving
    assert reset.fallback == pb.FALLBACK_DEGRADE
    assert reset.manifest_policy == pb.MANIFEST_POLICY_MANUAL


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("serving", "field"),
    [
        ({"manifest_memory_bytes": -1}, "serving.manifest_memory_bytes"),
        ({"fallback": 9}, "serving.fallback"),
        ({"manifest_policy": 9}, "serving.manifest_policy"),
    ],
)
async def test_serving_is_refused_with_the_field_when_it_is_no_policy(
    pool: Any, serving: dict[str, Any], field: str
) -> None:
    request = pb.UpdatePoolRequest(id="p", serving=pb.ServingPolicy(**serving))
    assert await refusal_over_grpc(pool.rpc.UpdatePool(request)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        field,
    )
    over_rest = await refusal_over_rest(pool, "PATCH", "/v1/pools/p", {"serving": serving})
    assert over_rest == (400, "INVALID_FIELD", field)
