"""A gateway without room refuses what comes before anybody reads it, in the caller's dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
UNREADABLE = b'{"no": "JSON'
FULL_REPLICA = {"backend_concurrency": 1}
FULL_GATEWAY = {"max_concurrent_requests": 1}


@pytest.fixture(params=[FULL_REPLICA, FULL_GATEWAY], ids=["replica", "gateway"])
async def full(request: pytest.FixtureRequest, start: Callable[..., Any]) -> AsyncIterator[Any]:
    """A gateway whose only room is taken by a generation that runs until it is cancelled."""
    async with start(**request.param) as stand:
        stand.engine.script.append("hang")
        running = asyncio.create_task(stand.post("/v1/chat/completions", CHAT))
        await asyncio.wait_for(stand.engine.begun.wait(), 30)
        stand.running = running
        stand.reason = "BACKENDS_FULL" if request.param is FULL_REPLICA else "GATEWAY_FULL"
        yield stand
        running.cancel()


async def refused(stand: Any, path: str) -> Any:
    response = await stand.http.post(stand.url + path, content=UNREADABLE)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    return response.json()


async def test_what_is_refused_was_not_read_nor_routed_and_is_counted(full: Any) -> None:
    name = "lorauter_gateway_requests_total"
    routes = ("openai.chat", "openai.completions", "tgi")
    routed = len(full.router.requests)
    before = [await full.metric(name, route=route, outcome=full.reason) for route in routes]
    chat = await refused(full, "/v1/chat/completions")
    assert chat["error"]["type"] == "rate_limit_error"
    assert chat["error"]["code"] == full.reason.lower()
    assert (await refused(full, "/v1/completions"))["error"]["code"] == full.reason.lower()
    for path in ("/generate", "/generate_stream", "/"):
        assert (await refused(full, path))["error_type"] == "overloaded"
    assert len(full.router.requests) == routed
    after = [await full.metric(name, route=route, outcome=full.reason) for route in routes]
    assert [late - early for early, late in zip(before, after, strict=True)] == [1, 1, 3]


async def test_what_takes_no_room_is_answered_meanwhile(full: Any) -> None:
    assert (await full.http.get(full.url + "/v1/models")).status_code == 200
    assert (await full.post("/v1/route", {"query": "hi"})).status_code == 200
    assert (await full.http.get(full.url + "/v1/chat/completions")).status_code == 405


async def test_connection_of_a_refused_request_serves_the_next_one(full: Any) -> None:
    """The refused body is skipped, however long it is, and not taken for the next request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(full.url.rsplit(":", 1)[1]))
    body = b"x" * 300_000
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    writer.write(head + body + b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    answers = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert answers.startswith(b"HTTP/1.1 429 ")
    assert answers.endswith(b"\r\n\r\nok")


async def test_room_that_comes_free_is_taken(full: Any) -> None:
    full.running.cancel()
    await full.until_engine_stopped()

    async def is_answered() -> bool:
        return (await full.post("/v1/chat/completions", CHAT)).status_code == 200

    await full.until(is_answered)


async def test_nothing_is_refused_unread_while_one_replica_has_room(start: Callable[..., Any]) -> None:
    async with start(engines=2, backend_concurrency=1) as stand:
        for engine in stand.engines:
            engine.script.append("hang")
        running = [asyncio.create_task(stand.post("/v1/chat/completions", CHAT))]
        url = stand.url + "/v1/chat/completions"
        assert (await stand.http.post(url, content=UNREADABLE)).status_code == 400
        running.append(asyncio.create_task(stand.post("/v1/chat/completions", CHAT)))
        for engine in stand.engines:
            await asyncio.wait_for(engine.begun.wait(), 30)
        assert (await stand.http.post(url, content=UNREADABLE)).status_code == 429
        for task in running:
            task.cancel()
