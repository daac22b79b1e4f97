"""Affinities and the progress of matchings over both transports."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from sqlalchemy import insert, update

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.store import tables

HEADER = "task_id,adapter_id,score,count"
ROWS = 2_300
"""More than two pages have."""


async def make(served: Any) -> None:
    """Gives the registry pool ``p`` with a backend, an adapter ``a`` and a task ``t`` with an example."""
    rpc, files = served.rpc, served.files
    base = str(files.base())
    await rpc.CreatePool(pb.CreatePoolRequest(id="p", base_model=files.base_model, base_path=base))
    await rpc.CreateTask(pb.CreateTaskRequest(id="t", pool="p", metric="exact_match"))
    put = await served.http.put("/v1/tasks/t/validation-set", content=b'{"input": "1", "target": "2"}')
    assert put.status_code == 200
    path = str(files.adapter("a"))
    await rpc.RegisterAdapter(pb.RegisterAdapterRequest(id="a", pool="p", path=path))
    engine = pb.RegisterBackendRequest(
        id="e", pool="p", kind=pb.BACKEND_KIND_ENGINE, url="http://localhost:1"
    )
    await rpc.RegisterBackend(engine)


def measure(served: Any) -> None:
    """Writes affinities of as many adapters as fill several pages."""
    rows = [
        tables.Affinity(
            tenant="default",
            task_id="t",
            task_version=1,
            adapter_id=f"n{number:05}",
            adapter_version=1,
            metric="exact_match",
            prompt_digest="sha256:0",
            score=number / 7_919,
            shrunk_score=number / 9_973,
            count=20,
            standard_error=0.1,
            lift=None if number % 2 else -0.25,
        ).model_dump(exclude={"measure_time"})
        for number in range(ROWS)
    ]
    with served.registry.context.engine.begin() as connection:
        connection.execute(insert(tables.Affinity), rows)


async def pages(served: Any) -> list[pb.Affinity]:
    found: list[pb.Affinity] = []
    token = ""
    while True:
        request = pb.ListAffinitiesRequest(pool="p", page_size=1_000, page_token=token)
        page = await served.rpc.ListAffinities(request)
        found.extend(page.affinities)
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("asked", [{"params": {"format": "csv"}}, {"headers": {"accept": "text/csv"}}])
async def test_csv_has_all_pages(served: Any, asked: dict[str, Any]) -> None:
    await make(served)
    measure(served)
    answer = await served.http.get("/v1/affinities", **asked)
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    listed = await pages(served)
    assert len(rows) == len(listed) == ROWS
    assert list(rows[0]) == [*HEADER.split(","), *list(rows[0])[4:]]
    assert {*rows[0]} == {field.name for field in pb.Affinity.DESCRIPTOR.fields}
    for row, one in zip(rows, listed, strict=True):
        assert (row["adapter_id"], float(row["score"])) == (one.adapter_id, one.score)
        assert (float(row["shrunk_score"]), row["eligible"]) == (one.shrunk_score, "true")
        assert row["lift"] == ("-0.25" if one.HasField("lift") else "")


async def test_export_is_an_import_over_rest(served: Any) -> None:
    await make(served)
    rows = "t,base,0.4,8,false,0.4,0.41,4\nt,a,0.8,8,true,0.7,0.78,4\n"
    content = f"{HEADER},eligible,shrunk_score,judged_score,judged_count\n{rows}"
    csv_headers = {"content-type": "text/csv; charset=utf-8"}
    first = await served.http.post("/v1/affinities", content=content, headers=csv_headers)
    assert first.json()["imported_count"] == 2, first.text
    as_json = (await served.http.get("/v1/affinities")).json()
    as_csv = (await served.http.get("/v1/affinities", params={"format": "csv"})).text
    again = await served.http.post("/v1/affinities", json=as_json)
    assert again.json()["imported_count"] == 2, again.text
    assert (await served.http.get("/v1/affinities")).json() == as_json
    again = await served.http.post("/v1/affinities", content=as_csv, headers=csv_headers)
    assert again.json()["imported_count"] == 2, again.text
    assert (await served.http.get("/v1/affinities")).json() == as_json


async def test_import_is_done_once_when_repeated_over_the_other_transport(served: Any) -> None:
    await make(served)
    row = {"task_id": "t", "adapter_id": "a", "score": 0, "count": 1, "eligible": True}
    request = pb.ImportAffinitiesRequest(affinities=[pb.Affinity(**row)], request_id="r")  # type: ignore[arg-type]
    first = await served.rpc.ImportAffinities(request)
    again = await served.http.post(
        "/v1/affinities", json={"affinities": [row]}, headers={"idempotency-key": "r"}
    )
    assert again.json() == {"imported_count": 1, "generation": first.generation}


async def test_every_change_of_a_matching_is_told(served: Any) -> None:
    await make(served)
    made = await served.rpc.StartMatching(pb.StartMatchingRequest(pool="p", max_evaluations=50))
    stream = served.rpc.WatchOperation(pb.WatchOperationRequest(id=made.id), timeout=30)
    told = await stream.read()
    assert (told.state, told.matching.max_evaluations) == (pb.OPERATION_STATE_PENDING, 50)

    def advance(state: str, done_tasks: int) -> None:
        progress = {"strategy": "default", "task_count": 2, "done_task_count": done_tasks, "alive": [7, 3]}
        with served.registry.context.engine.begin() as connection:
            connection.execute(update(tables.Operation).values(state=state, progress=progress))

    for done_tasks in (0, 1):
        advance("RUNNING", done_tasks)
        told = await stream.read()
        assert (told.matching.done_task_count, list(told.matching.alive)) == (done_tasks, [7, 3])
    advance("SUCCEEDED", 2)
    assert (await stream.read()).matching.done_task_count == 2
    events = await served.http.get(f"/v1/operations/{made.id}/events")
    told = json.loads(events.text.removeprefix("event: operation\ndata: "))["matching"]
    assert told == {
        "strategy": "default",
        "task_count": 2,
        "done_task_count": 2,
        "alive": [7, 3],
        "max_evaluations": 50,
        "quarantined_count": 0,
    }


async def test_quarantine_says_why_over_both_transports(served: Any) -> None:
    await make(served)
    reason = "NOT_FINITE: its answers hold NaN"
    with served.registry.context.engine.begin() as connection:
        connection.execute(update(tables.AdapterVersion).values(state="QUARANTINED", state_reason=reason))
    got = await served.rpc.GetAdapter(pb.GetAdapterRequest(id="a"))
    (listed,) = (await served.rpc.ListAdapters(pb.ListAdaptersRequest(pool="p"))).adapters
    assert got.latest.state_reason == listed.latest.state_reason == reason
    got = (await served.http.get("/v1/adapters/a")).json()
    (listed,) = (await served.http.get("/v1/adapters", params={"state": "QUARANTINED"})).json()["adapters"]
    assert got["latest"]["state_reason"] == listed["latest"]["state_reason"] == reason
