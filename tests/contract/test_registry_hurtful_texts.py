"""Texts that hurt as validation examples, over both transports: stored as they are, or refused by line."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
import pytest_asyncio

from lorauter.client.status import to_error
from lorauter.registry.v1 import registry_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONGEST = 65_536
STORED = {
    "emoji": "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈🦜",
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd\u202c مرحبا",
    "control": "\x01\x02\x1b[31m\x7f\x85",
    "separators of lines": "a\r\nb\u2028c\u2029d\x0be",
    "zero width": "\u200b\ufeff",
    "composed": "Caf\u00e9",
    "not composed": "Cafe\u0301",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "as long as may be": "ж" * LONGEST,
    "padded": "  x  ",
}
REFUSED = {
    "empty": "",
    "white space": " \n\t\u2003\u00a0",
    "NUL": "a\0b",
    "a character too long": "x" * (LONGEST + 1),
    "half a MiB": "x" * 512 * 1024,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(shared: Any) -> Any:
    """The registry with task ``hurt``, version 1."""
    base = str(shared.files.base())
    await shared.rpc.CreatePool(pb.CreatePoolRequest(id="hurt", base_model="tiny/base", base_path=base))
    await shared.rpc.CreateTask(pb.CreateTaskRequest(id="hurt", pool="hurt", metric="exact_match"))
    await put(shared, [("fine", "fine")])
    return shared


async def put(registry: Any, examples: list[tuple[str, str]]) -> pb.Task:
    """Replaces the validation set over gRPC."""
    header = pb.PutValidationSetRequest(header=pb.PutValidationSetHeader(task_id="hurt"))
    found = [pb.ValidationExample(input=question, target=answer) for question, answer in examples]
    chunk = pb.PutValidationSetRequest(chunk=pb.ValidationExampleChunk(examples=found))
    task: pb.Task = await registry.rpc.PutValidationSet(iter([header, chunk]))
    return task


async def upload(registry: Any, content: bytes) -> Any:
    """Replaces the validation set over HTTP."""
    return await registry.http.put("/v1/tasks/hurt/validation-set", content=content)


async def stored(registry: Any) -> list[tuple[str, str]]:
    page = await registry.rpc.ListValidationExamples(pb.ListValidationExamplesRequest(task_id="hurt"))
    return [(example.input, example.target) for example in page.examples]


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "raw"])
async def test_text_is_stored_as_it_is_when_it_is_unusual_but_valid(registry: Any, ascii_only: bool) -> None:
    examples = [(text, text) for text in STORED.values()]
    await put(registry, examples)
    assert await stored(registry) == examples
    backwards = examples[::-1]
    rows = [json.dumps({"input": i, "target": t}, ensure_ascii=ascii_only) for i, t in backwards]
    answer = await upload(registry, "\n".join(rows).encode())
    assert answer.status_code == 200, answer.text[:300]
    assert await stored(registry) == backwards
    text = (await registry.http.get("/v1/tasks/hurt/validation-set")).json()
    assert [(row["input"], row["target"]) for row in text["examples"]] == backwards


@pytest.mark.parametrize("name", REFUSED)
async def test_set_is_refused_as_a_whole_when_a_text_cannot_be_routed(registry: Any, name: str) -> None:
    before = await stored(registry)
    pairs = [("fine", "fine"), (REFUSED[name], "fine")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(registry, pairs)
    error = to_error(caught.value)
    assert error.reason == "INVALID_EXAMPLE"
    assert len(error.message) < 300
    rows = "\n".join(json.dumps({"input": question, "target": answer}) for question, answer in pairs)
    answer = await upload(registry, rows.encode())
    assert (answer.status_code, answer.json()["reason"]) == (400, "INVALID_EXAMPLE")
    assert "line 2" in answer.json()["detail"]
    assert await stored(registry) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"input": "a\\ud800b", "target": "x"}', "INVALID_EXAMPLE"),
        (b'{"input": "\xff\xfe", "target": "x"}', "MALFORMED_JSON"),
        (b'{"input": "\\u0000", "target": "x"}', "INVALID_EXAMPLE"),
        (b'{"input": ' + b"[" * 100_000, "MALFORMED_JSON"),
    ],
    ids=["lone surrogate", "not UTF-8", "escaped NUL", "deep"],
)
async def test_set_is_refused_when_a_line_is_no_text(registry: Any, line: bytes, reason: str) -> None:
    before = await stored(registry)
    answer = await upload(registry, b'{"input": "fine", "target": "fine"}\n' + line)
    assert (answer.status_code, answer.json()["reason"]) == (400, reason), answer.text[:300]
    assert "line 2" in answer.json()["detail"]
    assert await stored(registry) == before


@pytest.mark.parametrize("name", STORED)
async def test_description_comes_back_as_it_went_in_when_it_is_unusual(registry: Any, name: str) -> None:
    text = STORED[name][:200]
    updated = await registry.http.patch("/v1/tasks/hurt", json={"description": text})
    assert updated.status_code == 200, updated.text[:300]
    assert (await registry.rpc.GetTask(pb.GetTaskRequest(id="hurt"))).description == text
