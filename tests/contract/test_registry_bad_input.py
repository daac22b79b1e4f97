"""Bad input gets a typed error over both transports, and leaves nothing behind."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from lorauter.registry.v1 import registry_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEGABYTE = 1024 * 1024


async def rpc_reason(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """Returns status and reason of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = dict(caught.value.trailing_metadata() or {})["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert info.domain == "lorauter"
    assert "Traceback" not in (caught.value.details() or "")
    return caught.value.code(), info.reason


def reason(answer: httpx.Response, status: int) -> str:
    """Returns the reason of a problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["detail"]
    assert "Traceback" not in answer.text
    assert problem["reason"] == problem["title"]
    return str(problem["reason"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(shared: Any) -> Any:
    """The registry with pool ``p`` and task ``t`` that has one example."""
    base = str(shared.files.base())
    await shared.rpc.CreatePool(pb.CreatePoolRequest(id="p", base_model="tiny/base", base_path=base))
    await shared.rpc.CreateTask(pb.CreateTaskRequest(id="t", pool="p", metric="exact_match"))
    put = await shared.http.put("/v1/tasks/t/validation-set", content=b'{"input": "1", "target": "2"}')
    assert put.status_code == 200
    return shared


@pytest_asyncio.fixture(loop_scope="module")
async def unchanged(pool: Any) -> AsyncIterator[None]:
    """Checks that the test left the registry as it was."""
    before = await everything(pool)
    yield
    assert await everything(pool) == before


async def everything(served: Any) -> list[Any]:
    paths = ["pools", "backends", "tasks", "adapters", "affinities", "operations", "generation"]
    answers = [(await served.http.get(f"/v1/{path}")).json() for path in paths]
    return [*answers, (await served.http.get("/v1/tasks/t/validation-set")).json()]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"3", b'"x"', b"\xff", b'{"id": NaN}', b"[" * 50_000])
@pytest.mark.parametrize("path", ["pools", "backends", "tasks", "adapters", "affinities", "matchings"])
async def test_rest_refuses_a_body_that_is_not_the_object(pool: Any, path: str, body: bytes) -> None:
    answer = await pool.http.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert reason(answer, 400)


@pytest.mark.usefixtures("unchanged")
async def test_reason_is_malformed_json_when_it_is(pool: Any) -> None:
    headers = {"content-type": "application/json"}
    answer = await pool.http.post("/v1/tasks", content=b'{"id": ', headers=headers)
    assert reason(answer, 400) == "MALFORMED_JSON"


@pytest.mark.usefixtures("unchanged")
async def test_field_is_named_when_it_is_missing(pool: Any) -> None:
    answer = await pool.http.post("/v1/tasks", json={"id": "u", "pool": "p"})
    assert reason(answer, 400) == "MISSING_FIELD"
    assert answer.json()["metadata"] == {"field": "metric"}
    call = pool.rpc.CreateTask(pb.CreateTaskRequest(id="u", pool="p"))
    assert await rpc_reason(call) == (grpc.StatusCode.INVALID_ARGUMENT, "MISSING_FIELD")


BAD_CALLS: dict[str, tuple[Callable[[Any], Awaitable[Any]], grpc.StatusCode, str]] = {
    "unknown id": (
        lambda rpc: rpc.GetTask(pb.GetTaskRequest(id="nil")),
        grpc.StatusCode.NOT_FOUND,
        "TASK_NOT_FOUND",
    ),
    "unknown version": (
        lambda rpc: rpc.ListValidationExamples(pb.ListValidationExamplesRequest(task_id="t", version=9)),
        grpc.StatusCode.NOT_FOUND,
        "TASK_VERSION_NOT_FOUND",
    ),
    "unknown pool": (
        lambda rpc: rpc.ListTasks(pb.ListTasksRequest(pool="nil")),
        grpc.StatusCode.NOT_FOUND,
        "POOL_NOT_FOUND",
    ),
    "nul": (
        lambda rpc: rpc.CreateTask(
            pb.CreateTaskRequest(id="u", pool="p", metric="exact_match", description="a\x00")
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_TEXT",
    ),
    "metric": (
        lambda rpc: rpc.CreateTask(pb.CreateTaskRequest(id="u", pool="p", metric="guess")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "UNKNOWN_METRIC",
    ),
    "page size": (
        lambda rpc: rpc.ListTasks(pb.ListTasksRequest(page_size=-1)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    ),
    "page token": (
        lambda rpc: rpc.ListTasks(pb.ListTasksRequest(page_token="forged")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_PAGE_TOKEN",
    ),
    "enum": (
        lambda rpc: rpc.RegisterBackend(
            pb.RegisterBackendRequest(id="b", pool="p", kind=77, url="http://x")  # type: ignore[arg-type]
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    ),
    "not a number": (
        lambda rpc: rpc.ImportAffinities(
            pb.ImportAffinitiesRequest(
                affinities=[pb.Affinity(task_id="t", adapter_id="base", score=float("nan"), count=1)]
            )
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    ),
    "time": (
        lambda rpc: rpc.RetireAdapter(pb.RetireAdapterRequest(id="a", pins_until=Timestamp(seconds=10**15))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    ),
    "etag": (
        lambda rpc: rpc.UpdateTask(pb.UpdateTaskRequest(id="t", etag="old", description="x")),
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
    ),
    "exists": (
        lambda rpc: rpc.CreatePool(pb.CreatePoolRequest(id="p", base_model="x")),
        grpc.StatusCode.ALREADY_EXISTS,
        "POOL_EXISTS",
    ),
    "hub": (
        lambda rpc: rpc.RegisterAdapter(pb.RegisterAdapterRequest(id="a", pool="p", hub="a/b@main")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_HUB_NAME",
    ),
    "no evaluations": (
        lambda rpc: rpc.StartMatching(pb.StartMatchingRequest(pool="p", max_evaluations=0)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "ZERO_BUDGET",
    ),
    "no time": (
        lambda rpc: rpc.StartMatching(pb.StartMatchingRequest(pool="p", max_duration=Duration(seconds=-1))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "ZERO_BUDGET",
    ),
    "too much time": (
        lambda rpc: rpc.StartMatching(
            pb.StartMatchingRequest(pool="p", max_duration=Duration(seconds=2**62))
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    ),
    "priority": (
        lambda rpc: rpc.StartMatching(pb.StartMatchingRequest(pool="p", priority=101)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    ),
    "strategy": (
        lambda rpc: rpc.StartMatching(pb.StartMatchingRequest(pool="p", strategy="guess")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "UNKNOWN_STRATEGY",
    ),
    "no adapters": (
        lambda rpc: rpc.StartMatching(pb.StartMatchingRequest(pool="p")),
        grpc.StatusCode.FAILED_PRECONDITION,
        "NO_ADAPTERS",
    ),
    "hub away": (
        lambda rpc: rpc.RegisterAdapter(pb.RegisterAdapterRequest(id="a", pool="p", hub=f"a/b@{'0' * 40}")),
        grpc.StatusCode.UNAVAILABLE,
        "HUB_UNAVAILABLE",
    ),
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", BAD_CALLS)
async def test_call_is_refused_with_status_and_reason(pool: Any, name: str) -> None:
    call, code, expected = BAD_CALLS[name]
    assert await rpc_reason(call(pool.rpc)) == (code, expected)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("GET", "/v1/pools/nil", 404, "POOL_NOT_FOUND"),
        ("GET", "/v1/adapters/nil", 404, "ADAPTER_NOT_FOUND"),
        ("GET", "/v1/operations/nil", 404, "OPERATION_NOT_FOUND"),
        ("GET", "/v1/operations/nil/events", 404, "OPERATION_NOT_FOUND"),
        ("GET", "/v1/tasks/nil", 404, "TASK_NOT_FOUND"),
        ("GET", "/v1/tasks/%00", 400, "INVALID_TEXT"),
        ("GET", "/v1/tasks?page_size=-1", 400, "INVALID_FIELD"),
        ("GET", "/v1/tasks?page_size=x", 400, "INVALID_FIELD"),
        ("GET", "/v1/tasks?page_token=%00", 400, "INVALID_PAGE_TOKEN"),
        ("GET", "/v1/tasks?colour=red", 400, "INVALID_FIELD"),
        ("GET", "/v1/adapters?state=SLEEPY", 400, "INVALID_FIELD"),
        ("GET", "/v1/affinities?format=xml", 400, "INVALID_FIELD"),
        ("GET", "/v1/affinities?format=csv&page_size=1", 400, "INVALID_FIELD"),
        ("GET", "/v1/affinities?format=csv&pool=nil", 404, "POOL_NOT_FOUND"),
        ("GET", "/v1/profiles", 400, "MISSING_FIELD"),
        ("GET", "/v1/nothing", 404, "NO_SUCH_ROUTE"),
        ("PUT", "/v1/tasks", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/v1/tasks/nil", 404, "TASK_NOT_FOUND"),
        ("PUT", "/v1/tasks/t/validation-set", 400, "EMPTY_VALIDATION_SET"),
    ],
)
async def test_route_is_refused_with_status_and_reason(
    pool: Any, method: str, path: str, status: int, expected: str
) -> None:
    assert reason(await pool.http.request(method, path), status) == expected


@pytest.mark.usefixtures("unchanged")
async def test_body_is_refused_when_it_is_50_mb(pool: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * MEGABYTE

    whole = b" " * 50 * MEGABYTE
    for path in ("/v1/tasks", "/v1/affinities"):
        for content in (whole, pieces()):
            answer = await pool.http.post(path, content=content)
            assert reason(answer, 413) == "BODY_TOO_LARGE"
    lines = b'{"input": "x", "target": "y"}\n' * MEGABYTE
    answer = await pool.http.put("/v1/tasks/t/validation-set", content=lines)
    assert reason(answer, 413) == "BODY_TOO_LARGE"


@pytest.mark.usefixtures("unchanged")
async def test_message_is_refused_when_it_is_unreadable_or_too_large(pool: Any) -> None:
    raw = pool.channel.unary_unary("/lorauter.registry.v1.RegistryService/GetTask")
    expected = (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert await rpc_reason(raw(b"\xff\xff\xff")) == expected
    stream = pool.channel.stream_unary("/lorauter.registry.v1.RegistryService/PutValidationSet")
    assert await rpc_reason(stream(iter([b"\xff\xff\xff"]))) == expected
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pool.rpc.CreateTask(pb.CreateTaskRequest(description="x" * 50 * MEGABYTE))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def chunk(*pairs: tuple[str, str]) -> pb.PutValidationSetRequest:
    examples = [pb.ValidationExample(input=question, target=answer) for question, answer in pairs]
    return pb.PutValidationSetRequest(chunk=pb.ValidationExampleChunk(examples=examples))


HEADER = pb.PutValidationSetRequest(header=pb.PutValidationSetHeader(task_id="t"))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("pieces", "code", "expected"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "MISSING_HEADER"),
        ([chunk(("a", "b"))], grpc.StatusCode.INVALID_ARGUMENT, "MISSING_HEADER"),
        ([HEADER], grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_VALIDATION_SET"),
        ([HEADER, HEADER], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([HEADER, chunk(("a", "b"), (" ", "b"))], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_EXAMPLE"),
        ([HEADER, chunk(*[("a", "b")] * 1_001)], grpc.StatusCode.INVALID_ARGUMENT, "CHUNK_TOO_LARGE"),
        (
            [HEADER, *[chunk(*[("a" * 600, "b")] * 999)] * 2],
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "VALIDATION_SET_TOO_LARGE",
        ),
    ],
)
async def test_stream_is_refused_as_a_whole(
    pool: Any, pieces: list[Any], code: grpc.StatusCode, expected: str
) -> None:
    assert await rpc_reason(pool.rpc.PutValidationSet(iter(pieces))) == (code, expected)


async def test_stream_stores_nothing_when_the_caller_leaves_before_its_end(pool: Any) -> None:
    await pool.rpc.CreateTask(pb.CreateTaskRequest(id="left", pool="p", metric="exact_match"))
    header = pb.PutValidationSetRequest(header=pb.PutValidationSetHeader(task_id="left"))
    for number in range(20):
        call = pool.rpc.PutValidationSet()
        await call.write(header)
        await call.write(chunk((f"part {number}", "b")))
        call.cancel()
    for number in range(5):
        call = pool.rpc.PutValidationSet(timeout=0.3)
        await call.write(header)
        await call.write(chunk((f"late {number}", "b")))
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    task = await pool.rpc.PutValidationSet(iter([header, chunk(("whole", "b"))]))
    assert (task.version, task.example_count) == (1, 1)


def _foreign(files: Any) -> str:
    return str(files.adapter("a", base="some/other"))


def _truncated(files: Any) -> str:
    weights = files.adapter("a") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    return str(weights.parent)


def _pickle(files: Any) -> str:
    folder = files.adapter("a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return str(folder)


def _disguised(files: Any) -> str:
    folder = files.adapter("a")
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95" + b"\x00" * 64)
    return str(folder)


def _linked(files: Any) -> str:
    (files.root / "link").symlink_to("/etc")
    return str(files.root / "link")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("make", "status", "expected"),
    [
        (_foreign, 422, {"ADAPTER_BASE_MISMATCH"}),
        (_truncated, 422, {"ADAPTER_TRUNCATED"}),
        (_pickle, 422, {"ADAPTER_PICKLE"}),
        (_disguised, 422, {"ADAPTER_PICKLE", "ADAPTER_CORRUPT"}),
        (lambda files: str(files.adapter("a", width=4)), 422, {"ADAPTER_SHAPE_MISMATCH"}),
        (lambda files: str(files.root / "nothing"), 404, {"PATH_NOT_FOUND"}),
        (lambda files: str(files.root / ("x" * 300)), 404, {"PATH_NOT_FOUND"}),
        (lambda files: str(files.base()), 422, {"ADAPTER_NOT_FOUND"}),
        (lambda files: "/etc", 400, {"PATH_NOT_ALLOWED"}),
        (lambda files: f"{files.root}/../../../../etc", 400, {"PATH_NOT_ALLOWED"}),
        (lambda files: "incoming/a", 400, {"PATH_NOT_ALLOWED"}),
        (_linked, 400, {"PATH_NOT_ALLOWED"}),
    ],
)
async def test_adapter_is_refused_and_nothing_stored(
    pool: Any, tiny_pools: Any, make: Callable[[Any], str], status: int, expected: set[str]
) -> None:
    files = tiny_pools(pool.files.root / str(uuid.uuid4()))
    files.root.mkdir()
    fields: dict[str, Any] = {"id": "a", "pool": "p", "path": make(files)}
    assert reason(await pool.http.post("/v1/adapters", json=fields), status) in expected
    _, refused = await rpc_reason(pool.rpc.RegisterAdapter(pb.RegisterAdapterRequest(**fields)))
    assert refused in expected
    assert pool.registry.context.store.digests() == []


@pytest.mark.usefixtures("unchanged")
async def test_headers_are_refused_when_they_contradict_the_body(pool: Any) -> None:
    body = {"id": "u", "pool": "p", "metric": "exact_match", "request_id": "one"}
    answer = await pool.http.post("/v1/tasks", json=body, headers={"idempotency-key": "two"})
    assert reason(answer, 400) == "CONFLICTING_HEADER"
    answer = await pool.http.patch("/v1/tasks/t", json={"description": "x"}, headers={"if-match": '"0"'})
    assert reason(answer, 409) == "ETAG_MISMATCH"


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({"max_evaluations": 0}, 400, "ZERO_BUDGET"),
        ({"max_evaluations": -5}, 400, "ZERO_BUDGET"),
        ({"max_evaluations": 2**63}, 400, "INVALID_FIELD"),
        ({"max_evaluations": "some"}, 400, "INVALID_FIELD"),
        ({"max_duration": "0s"}, 400, "ZERO_BUDGET"),
        ({"max_duration": "PT0S"}, 400, "ZERO_BUDGET"),
        ({"max_duration": "-1.5s"}, 400, "ZERO_BUDGET"),
        ({"max_duration": "1e300s"}, 400, "INVALID_FIELD"),
        ({"max_duration": "nans"}, 400, "INVALID_FIELD"),
        ({"max_duration": "soon"}, 400, "INVALID_FIELD"),
        ({"max_duration": 10**30}, 400, "INVALID_FIELD"),
        ({"priority": -101}, 400, "INVALID_FIELD"),
        ({"strategy": "guess"}, 400, "UNKNOWN_STRATEGY"),
        ({}, 412, "NO_ADAPTERS"),
    ],
)
async def test_matching_is_refused_before_it_begins(
    pool: Any, fields: dict[str, Any], status: int, expected: str
) -> None:
    answer = await pool.http.post("/v1/matchings", json={"pool": "p", **fields})
    assert reason(answer, status) == expected


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (b"task_id,adapter_id,score,count\nt,base,nan,1\n", "text/csv", (400, "INVALID_FIELD")),
        (b"task_id,adapter_id,score,count\nt,base,,1\n", "text/csv", (400, "MISSING_FIELD")),
        (
            b"task_id,adapter_id,score,count,metric\nt,base,1,1,bleu\n",
            "text/csv",
            (400, "METRIC_MISMATCH"),
        ),
        (
            b'{"affinities": [{"task_id": "t", "adapter_id": "base", "score": NaN, "count": 1}]}',
            "application/json",
            (400, "INVALID_FIELD"),
        ),
        (
            b'{"affinities": [{"task_id": "t", "adapter_id": "base", "count": 1}]}',
            "application/json",
            (400, "MISSING_FIELD"),
        ),
        (
            b'{"affinities": [{"task_id": "t", "adapter_id": "base", "score": 1, "count": 1}], '
            b'"next_page_token": "more"}',
            "application/json",
            (400, "INVALID_FIELD"),
        ),
        (b'{"affinities": [' + b" " * 17 * MEGABYTE + b"]}", "application/json", (413, "BODY_TOO_LARGE")),
        (b"task_id,adapter_id,score,count\nt,nil,1,1\n", "text/csv", (404, "ADAPTER_NOT_FOUND")),
        (b"task_id,adapter_id,score,count\nnil,base,1,1\n", "text/csv", (404, "TASK_NOT_FOUND")),
        (b"task_id,adapter_id,score,count\nt,base,1.5,1\n", "text/csv", (400, "INVALID_FIELD")),
        (b"task_id,adapter_id,score,count\nt,base,1,0\n", "text/csv", (400, "INVALID_FIELD")),
        (
            b"task_id,adapter_id,score,count\nt,base,1,1\nt,base,1,1\n",
            "text/csv",
            (400, "DUPLICATE_AFFINITY"),
        ),
        (json.dumps({"affinities": []}).encode(), "application/json", (400, "INVALID_FIELD")),
    ],
)
async def test_import_is_refused_as_a_whole(
    pool: Any, content: bytes, kind: str, expected: tuple[int, str]
) -> None:
    answer = await pool.http.post("/v1/affinities", content=content, headers={"content-type": kind})
    assert reason(answer, expected[0]) == expected[1]
