"""Replicas: which one gets a request, and what becomes of one that fails or is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from lorauter.errors import Exhausted, LorauterError, NotFound, Unavailable
from lorauter.router.v1 import router_pb2
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.fleet import KnownFleet

PROMPT = {"inputs": "what is 1 plus 2"}
UNHEALTHY = (503, "healthcheck", "unhealthy")
FULL = (429, "overloaded", "full")
Stand = Any


async def replicas(stand: Stand) -> list[dict[str, Any]]:
    return (await stand.http.get(stand.url + "/v1/backends")).json()["replicas"]


async def states(stand: Stand) -> list[str]:
    return [replica["state"] for replica in await replicas(stand)]


async def served_by(stand: Stand, count: int = 1) -> set[str]:
    return {(await stand.client.generate("hi")).served.backend_id for _ in range(count)}


async def test_backends_are_described(stand: Stand) -> None:
    await stand.client.generate("hi")
    (found,) = await replicas(stand)
    engine = stand.engine
    assert (found["backend_id"], found["url"], found["pool"]) == ("engine-0", engine.url, "demo")
    assert (found["kind"], found["takes"], found["state"]) == ("engine", "sets", "healthy")
    assert (found["in_flight"], found["in_flight_limit"], found["draining"]) == (0, 256, False)
    assert (found["adapter_slots"], found["max_rank"], found["holds"]) == (None, None, None)
    assert found["quarantined"] == []
    served = (await stand.client.generate("hi")).served
    assert (served.replica, served.served_name) == (engine.url, "")
    assert "x-lorauter-replica" not in (await stand.post("/generate", PROMPT)).headers


async def test_name_stands_for_a_replica_at_each_of_its_addresses() -> None:
    found = ["10.0.0.1", "10.0.0.2", "fd00::1"]

    async def resolve(name: str, port: int) -> Sequence[str]:
        assert (name, port) == ("vllm-headless", 8000)
        if not found:
            raise OSError
        return list(found)

    backend = router_pb2.Backend(
        backend_id="b", kind="vllm", url="dns+http://vllm-headless:8000", adapter_slots=4, adapters_path="/a"
    )
    async with Connections(1, 1) as connections:
        fleet = KnownFleet(connections, 0, resolve)
        first = await fleet.endpoints("t", backend)
        urls = ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"]
        assert [endpoint.url for endpoint in first] == urls
        assert [endpoint.replica for endpoint in first] == [f"t/b@{url}" for url in urls]
        assert all(endpoint.is_one_of_several for endpoint in first)
        assert {(e.slots, e.max_rank, e.adapters_path, e.shards) for e in first} == {(4, 16, "/a", 1)}
        found.remove("10.0.0.1")
        second = await fleet.endpoints("t", backend)
        assert [endpoint.url for endpoint in second] == urls[1:]
        assert second[0].driver is first[1].driver
        found.clear()
        assert [endpoint.url for endpoint in await fleet.endpoints("t", backend)] == urls[1:]


async def test_replica_is_named_where_a_backend_has_several(stand: Stand) -> None:
    url = stand.engine.url
    stand.router.backends[0].url = f"dns+{url}"

    async def is_named() -> bool:
        headers = (await stand.post("/generate", PROMPT)).headers
        return headers.get("x-lorauter-replica") == url

    await stand.until(is_named)


async def test_name_without_an_address_is_typed(stand: Stand) -> None:
    stand.router.backends[0].url = "dns+http://nowhere.invalid:80"

    async def is_refused() -> bool:
        answer = await stand.post("/generate", PROMPT)
        return answer.status_code == 503 and "address resolves" in answer.json()["error"]

    await stand.until(is_refused)


async def test_replica_that_answers_only_faults_is_ejected_and_its_requests_served_elsewhere(
    pair: Stand,
) -> None:
    bad = pair.engines[0]
    bad.script.extend([UNHEALTHY] * 100)
    while await states(pair) != ["ejected", "healthy"]:
        assert await served_by(pair) == {"engine-1"}
    name = "lorauter_gateway_ejections_total"
    assert await pair.metric(name, backend="engine-0") >= 1

    async def is_ejected() -> bool:
        # half open only until a trial, which ends as the last one did
        assert await served_by(pair) == {"engine-1"}
        return await pair.metric("lorauter_gateway_replicas", backend="engine-0", state="ejected") == 1

    await pair.until(is_ejected)
    bad.script.clear()

    async def is_back() -> bool:
        return await served_by(pair, 2) == {"engine-0", "engine-1"}

    await pair.until(is_back)
    assert await states(pair) == ["healthy", "healthy"]


async def test_no_more_than_half_of_a_pool_is_given_up(pair: Stand) -> None:
    for engine in pair.engines:
        engine.is_healthy = False

    async def is_out() -> bool:
        return await states(pair) == ["ejected", "ejected"]

    await pair.until(is_out)
    assert len(await served_by(pair, 4)) == 1


async def test_only_replica_is_asked_whatever_its_health(stand: Stand) -> None:
    stand.engine.is_healthy = False

    async def is_out() -> bool:
        return await states(stand) == ["ejected"]

    await stand.until(is_out)
    assert await served_by(stand) == {"engine-0"}


@pytest.mark.parametrize("kind", ["generate", "stream"])
async def test_request_is_tried_on_three_replicas_at_most(start: Callable[..., Any], kind: str) -> None:
    async with start(engines=5) as stand:
        for engine in stand.engines:
            engine.script.extend([UNHEALTHY] * 3)
        stream = stand.client.generate_stream("hi")
        with pytest.raises(Unavailable) as caught:
            await (stand.client.generate("hi") if kind == "generate" else anext(stream))
        assert caught.value.reason == "BACKEND_UNAVAILABLE"
        assert sorted(len(engine.bodies) for engine in stand.engines) == [0, 0, 1, 1, 1]


async def test_retries_are_bounded_by_a_budget(start: Callable[..., Any]) -> None:
    async with start(engines=3) as stand:
        refused = "lorauter_gateway_retries_refused_total"
        before = await stand.metric(refused, pool="demo")
        for engine in stand.engines:
            engine.script.extend([(503, "", "x")] * 100)
        for _ in range(20):
            with pytest.raises(Unavailable):
                await stand.client.generate("hi")
        tries = sum(len(engine.bodies) for engine in stand.engines)
        assert 20 + 10 <= tries <= 20 + 12
        assert await stand.metric(refused, pool="demo") > before


async def test_refusal_for_being_full_is_no_fault_and_lowers_the_limit(pair: Stand) -> None:
    pair.engines[0].script.extend([FULL] * 8)
    for _ in range(20):
        assert (await pair.client.generate("hi")).text == "Hello world"
    (first, second) = await replicas(pair)
    assert first["state"] == "healthy"
    assert first["consecutive_faults"] == 0
    assert first["in_flight_limit"] < 256
    assert second["in_flight_limit"] == 256


async def test_caller_gets_the_smallest_retry_after_when_all_are_full(pair: Stand) -> None:
    pair.engines[0].retry_after, pair.engines[1].retry_after = "7", "2"
    for engine in pair.engines:
        engine.script.append(FULL)
    answer = await pair.post("/generate", PROMPT)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert all(len(engine.bodies) == 1 for engine in pair.engines)


async def test_request_is_refused_unrouted_when_all_replicas_have_what_they_take(stand: Stand) -> None:
    stand.router.backends[0].max_concurrent_requests = 1

    async def is_limited() -> bool:
        return [replica["in_flight_limit"] for replica in await replicas(stand)] == [1]

    await stand.until(is_limited)
    stand.engine.script.append("endless")
    stream = stand.client.generate_stream("hi")
    async with aclosing(stream):
        await anext(stream)
        routed = len(stand.router.requests)
        for target in ({}, {"adapter": "adds"}, {"base": True}):
            with pytest.raises(Exhausted) as caught:
                await stand.client.generate("hi", **target)
            assert caught.value.reason == "BACKENDS_FULL"
        answer = await stand.post("/generate", PROMPT)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert len(stand.router.requests) == routed
        assert len(stand.engine.bodies) == 1
        assert [replica["in_flight"] for replica in await replicas(stand)] == [1]

    async def has_room() -> bool:
        try:
            return (await stand.client.generate("hi")).text == "Hello world"
        except Exhausted:
            return False

    await stand.until(has_room)
    assert [replica["in_flight"] for replica in await replicas(stand)] == [0]


async def test_replica_may_say_itself_how_many_requests_it_takes(stand: Stand) -> None:
    stand.engine.concurrency = 3
    stand.engine.is_healthy = False

    async def is_away() -> bool:
        return (await replicas(stand))[0]["consecutive_faults"] > 0

    await stand.until(is_away)
    stand.engine.is_healthy = True

    async def is_limited() -> bool:
        return (await replicas(stand))[0]["in_flight_limit"] == 3

    await stand.until(is_limited)


@pytest.mark.parametrize(
    "end", ["answer", "caller's fault", "failure", "cancel", "deadline", "closed stream"]
)
async def test_room_is_given_back_however_a_request_ends(stand: Stand, end: str) -> None:
    script: dict[str, Any] = {"cancel": "hang", "deadline": "hang", "closed stream": "endless"}
    script |= {"caller's fault": (422, "validation", "bad"), "failure": (424, "generation", "x")}
    if end in script:
        stand.engine.script.append(script[end])
    if end == "cancel":
        call = asyncio.ensure_future(stand.client.generate("hi"))
        await asyncio.wait_for(stand.engine.begun.wait(), 30)
        call.cancel()
    elif end == "closed stream":
        stream = stand.client.generate_stream("hi")
        await anext(stream)
        await stream.aclose()
    elif end == "answer":
        await stand.client.generate("hi")
    else:
        with pytest.raises(LorauterError):
            await stand.client.with_timeout(0.3).generate("hi")

    async def is_free() -> bool:
        counts = [replica["in_flight"] for replica in await replicas(stand)]
        return counts == [0] and await stand.metric("lorauter_gateway_in_flight") == 0

    await stand.until(is_free)
    assert await stand.metric("lorauter_gateway_backend_in_flight", backend="engine-0") == 0


async def test_stream_that_breaks_after_its_first_piece_counts_as_a_fault(stand: Stand) -> None:
    stand.engine.script.extend(["break"] * 3)
    for _ in range(3):
        with pytest.raises(Unavailable):
            [piece async for piece in stand.client.generate_stream("hi")]
    assert len(stand.engine.bodies) == 3
    assert (await replicas(stand))[0]["consecutive_faults"] == 3
    name = "lorauter_gateway_backend_failures_total"
    assert await stand.metric(name, backend="engine-0", reason="STREAM_BROKEN") >= 3


async def test_backend_that_is_no_longer_registered_is_forgotten(pair: Stand) -> None:
    del pair.router.backends[0]

    async def is_gone() -> bool:
        return [replica["backend_id"] for replica in await replicas(pair)] == ["engine-1"]

    await pair.until(is_gone)
    assert await served_by(pair, 3) == {"engine-1"}


async def test_running_stream_of_a_draining_backend_ends_well(pair: Stand) -> None:
    stream = pair.client.generate_stream("hi")
    first = await anext(stream)
    used = next(b for b in pair.router.backends if b.backend_id == first.served.backend_id)
    used.draining = True

    async def is_draining() -> bool:
        return any(replica["draining"] for replica in await replicas(pair))

    await pair.until(is_draining)
    rest = [piece.text async for piece in stream]
    assert first.text + "".join(rest) == "Hello world"
    assert used.backend_id not in await served_by(pair, 4)


async def test_recalled_adapter_is_refused_at_the_next_request(stand: Stand) -> None:
    assert (await stand.client.generate("hi", adapter="adds")).text == "Hello world"
    stand.router.recalled.add("adds")
    with pytest.raises(NotFound):
        await stand.client.generate("hi", adapter="adds")
    assert (await stand.client.generate("hi", adapter="2adds")).text == "Hello world"


async def test_adapter_without_effect_is_quarantined_and_the_next_best_served(stand: Stand) -> None:
    digest = "sha256:" + "b" * 64
    stand.engine.without_effect.add(digest)
    assert (await stand.client.generate("hi")).served.composition

    async def is_quarantined() -> bool:
        (found,) = await replicas(stand)
        return [item["name"] for item in found["quarantined"]] == [digest]

    await stand.until(is_quarantined)
    headers = (await stand.post("/generate", PROMPT)).headers
    assert headers["x-lorauter-adapters"] == "adds;w=1.0"
    assert "the weighted set is not served: 2adds is quarantined" in headers["x-lorauter-degraded"]
    assert await stand.metric("lorauter_gateway_degraded_total", pool="demo", reason="quarantined") >= 1
    found = "lorauter_gateway_canary_failures_total"
    assert await stand.metric(found, backend="engine-0", found="absent") >= 1
