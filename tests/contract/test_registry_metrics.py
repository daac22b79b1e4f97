"""A task's metric can read its targets, or nothing is stored; the same over both transports."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from lorauter.metrics import METRIC_NAMES
from lorauter.registry.v1 import registry_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

READABLE = {"json_match": '{"a": 1}', "numeric_match": "42"}
UNREADABLE = {
    "choice_accuracy": "?!",
    "numeric_match": "forty-two",
    "json_match": "{'a': 1}",
    "rouge1": "...",
    "rouge2": "yes",
    "rougeL": "今天",
    "token_f1": "The.",
    "bleu": " ",
    "chrf": " ",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(shared: Any) -> Any:
    """The registry with pool ``p`` and, for each metric, a task whose id is task_of() of it."""
    base = str(shared.files.base())
    await shared.rpc.CreatePool(pb.CreatePoolRequest(id="p", base_model="tiny/base", base_path=base))
    for name in METRIC_NAMES:
        await shared.rpc.CreateTask(pb.CreateTaskRequest(id=task_of(name), pool="p", metric=name))
    return shared


def task_of(name: str) -> str:
    return name.lower().replace("_", "-")


def lines(*targets: str) -> bytes:
    return b"\n".join(json.dumps({"input": "q", "target": target}).encode() for target in targets)


async def put(served: Any, task: str, *targets: str) -> pb.Task:
    """Replaces a validation set over gRPC."""
    examples = [pb.ValidationExample(input="q", target=target) for target in targets]
    pieces = [
        pb.PutValidationSetRequest(header=pb.PutValidationSetHeader(task_id=task)),
        pb.PutValidationSetRequest(chunk=pb.ValidationExampleChunk(examples=examples)),
    ]
    answer: pb.Task = await served.rpc.PutValidationSet(iter(pieces))
    return answer


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    details = dict(error.trailing_metadata() or {})["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return info


async def state(served: Any, task: str) -> list[Any]:
    paths = [f"tasks/{task}", f"tasks/{task}/validation-set", "generation"]
    return [(await served.http.get(f"/v1/{path}")).json() for path in paths]


@pytest.mark.parametrize("name", UNREADABLE)
async def test_example_is_named_and_nothing_stored_when_the_metric_cannot_read_it(
    pool: Any, name: str
) -> None:
    task, good, bad = task_of(name), READABLE.get(name, "some words"), UNREADABLE[name]
    before = await state(pool, task)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(pool, task, good, good, bad, bad)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    info = info_of(caught.value)
    assert (info.reason, dict(info.metadata)) == ("UNREADABLE_TARGET", {"metric": name, "example": "3"})
    answer = await pool.http.put(f"/v1/tasks/{task}/validation-set", content=lines(good, good, bad))
    assert (answer.status_code, answer.json()["reason"]) == (400, "UNREADABLE_TARGET")
    assert answer.json()["metadata"] == {"metric": name, "example": "3"}
    assert answer.json()["detail"].startswith("example 3: metric ")
    assert answer.json()["detail"].endswith("nothing was changed")
    assert caught.value.details() == answer.json()["detail"]
    assert await state(pool, task) == before


@pytest.mark.parametrize("name", METRIC_NAMES)
async def test_set_is_stored_when_the_metric_can_read_its_targets(pool: Any, name: str) -> None:
    good = READABLE.get(name, "some words")
    answer = await pool.http.put(f"/v1/tasks/{task_of(name)}/validation-set", content=lines(good))
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] > 0


async def test_metric_stays_when_the_new_one_cannot_read_the_current_targets(pool: Any) -> None:
    await pool.rpc.CreateTask(pb.CreateTaskRequest(id="changing", pool="p", metric="exact_match"))
    await put(pool, "changing", "1", "one", "2")
    await put(pool, "changing", "1", "2", "two")
    before = await state(pool, "changing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pool.rpc.UpdateTask(pb.UpdateTaskRequest(id="changing", metric="numeric_match"))
    info = info_of(caught.value)
    assert (info.reason, dict(info.metadata)) == (
        "UNREADABLE_TARGET",
        {"metric": "numeric_match", "example": "3"},
    )
    answer = await pool.http.patch("/v1/tasks/changing", json={"metric": "numeric_match"})
    assert (answer.status_code, answer.json()["reason"]) == (400, "UNREADABLE_TARGET")
    assert await state(pool, "changing") == before


async def test_metric_changes_when_the_new_one_reads_the_current_targets(pool: Any) -> None:
    await pool.rpc.CreateTask(pb.CreateTaskRequest(id="changed", pool="p", metric="exact_match"))
    await put(pool, "changed", "one")
    await put(pool, "changed", "1", "2")
    task = await pool.rpc.UpdateTask(pb.UpdateTaskRequest(id="changed", metric="numeric_match"))
    assert (task.metric, task.version) == ("numeric_match", 3)


async def test_metric_is_refused_with_the_known_ones_when_unknown(pool: Any) -> None:
    for call in (
        pool.rpc.CreateTask(pb.CreateTaskRequest(id="new", pool="p", metric="rouge-1")),
        pool.rpc.UpdateTask(pb.UpdateTaskRequest(id="bleu", metric="rouge-1")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert info_of(caught.value).reason == "UNKNOWN_METRIC"
        assert all(name in (caught.value.details() or "") for name in METRIC_NAMES)
