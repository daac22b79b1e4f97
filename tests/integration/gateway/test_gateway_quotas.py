"""What keys may use in a minute, counted in Redis for all gateways."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from redis.asyncio import Redis

from lorauter.access import read_key
from lorauter.encoder import Encoder
from lorauter.errors import Exhausted
from lorauter.gateway.v1 import gateway_pb2 as pb
from lorauter.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running
from lorauter_suite.embedded.valkey import valkey_process, valkey_url
from tests.integration.gateway.tenants import QUERY, Door, Tenants, tenants_standing

BASE = "org/a-base"
USED = 8
"""Tokens of each of the peer's answers, its prompt's five included."""
PROMPT = 6
"""Tokens that QUERY is estimated at."""


@pytest.fixture
async def tenants(encoder: Encoder, redis_url: str) -> AsyncIterator[Tenants]:
    """Two gateways on one Redis."""
    async with tenants_standing(encoder, gateways=2, redis_url=redis_url) as found:
        yield found


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Polls until ``holds()``, for at most 10 s."""
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110  -- what is awaited lies behind a socket
            await asyncio.sleep(0.01)


def limits(answer: httpx.Response, of: str) -> tuple[int, int]:
    """Returns a limit and what is left of it, as an answer says."""
    return int(answer.headers[f"x-ratelimit-limit-{of}"]), int(answer.headers[f"x-ratelimit-remaining-{of}"])


def book(key: str) -> str:
    presented = read_key(key)
    assert presented
    return f"lorauter:quota:{presented.id}"


async def levels(redis: Redis, key: str) -> tuple[float, float]:
    """Returns how many requests and tokens a key's book holds."""
    found: Any = await redis.hmget(book(key), "requests", "tokens")
    return float(found[0] or 0), float(found[1] or 0)


async def grows_older(redis: Redis, key: str, seconds: float) -> None:
    """Has a key's book be as if so much time had gone by."""
    await redis.hincrby(book(key), "at", -round(seconds * 1e6))


async def microseconds(redis: Redis) -> int:
    seconds, rest = await redis.time()
    return int(seconds) * 1_000_000 + int(rest)


async def test_fifty_clients_at_two_gateways_get_what_the_key_has_and_no_more(
    tenants: Tenants, redis: Redis
) -> None:
    limit = 20
    key = tenants.keys.key("a", requests_per_minute=limit)
    began = await microseconds(redis)

    async def client(number: int) -> list[httpx.Response]:
        door = tenants.doors[number % 2]
        return [await door.ask(key, BASE) for _ in range(2)]

    answers = [answer for found in await asyncio.gather(*map(client, range(50))) for answer in found]
    minutes = (await microseconds(redis) - began) / 60e6
    served = [answer for answer in answers if answer.status_code == 200]
    # where the machine is so busy that Redis counts as away, what it took may not have been served
    unheard = [answer for answer in answers if answer.status_code == 503]
    assert limit - len(unheard) <= len(served) <= limit + limit * minutes
    assert len(tenants.engines["a", "demo"].bodies) == len(served)
    for answer in (each for each in answers if each not in unheard):
        assert limits(answer, "requests")[0] == limit
        assert "x-ratelimit-limit-tokens" not in answer.headers
        if answer.status_code != 200:
            assert answer.status_code == 429
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert 1 <= int(answer.headers["retry-after"]) <= 4
            assert limits(answer, "requests")[1] == 0


async def test_a_key_gets_its_rate_back_by_redis_clock(tenants: Tenants, redis: Redis) -> None:
    key = tenants.keys.key("a", requests_per_minute=4)
    other = tenants.keys.key("a", requests_per_minute=4)

    async def is_served(door: Door) -> bool:
        return (await door.ask(key, BASE)).status_code == 200

    async def served(door: Door) -> int:
        # a gateway that has refused goes on refusing for up to a second
        await until(lambda: is_served(door))
        return 1 + sum([await is_served(door) for _ in range(5)])

    assert await served(tenants.doors[0]) == 4
    await grows_older(redis, key, 31)
    assert await served(tenants.doors[1]) == 2
    await grows_older(redis, key, 3600)
    assert await served(tenants.doors[1]) == 4
    # a clock that was set back by an hour gives nothing, and takes nothing
    await grows_older(redis, key, -3600)
    assert not any([await is_served(tenants.doors[0]) for _ in range(3)])
    assert (await tenants.door.ask(other, BASE)).status_code == 200


async def test_tokens_are_reserved_and_then_settled_by_what_was_used(tenants: Tenants, redis: Redis) -> None:
    key = tenants.keys.key("a", tokens_per_minute=1000)
    for number in range(1, 4):
        answer = await tenants.door.ask(key, BASE, max_tokens=500)
        assert answer.status_code == 200, answer.text
        limit, left = limits(answer, "tokens")
        assert limit == 1000
        assert left >= 1000 - PROMPT - 500 - USED * (number - 1)
        assert "x-ratelimit-limit-requests" not in answer.headers

        async def is_settled(spent: int = USED * number) -> bool:
            return (await levels(redis, key))[1] <= spent

        await until(is_settled)


async def test_what_runs_holds_its_reservation(tenants: Tenants, redis: Redis) -> None:
    key = tenants.keys.key("a", tokens_per_minute=1000)
    tenants.engines["a", "demo"].script.append("hang")
    running_one = asyncio.create_task(tenants.door.ask(key, BASE, max_tokens=600))
    await asyncio.wait_for(tenants.engines["a", "demo"].begun.wait(), 30)
    refused = await tenants.doors[1].ask(key, BASE, max_tokens=600)
    assert refused.status_code == 429
    assert "1000 tokens a minute" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) <= 13
    assert (await tenants.doors[1].ask(key, BASE, max_tokens=300)).status_code == 200
    running_one.cancel()  # who goes away before anything came pays what was reserved
    await asyncio.wait_for(tenants.engines["a", "demo"].stopped.wait(), 30)
    assert (await levels(redis, key))[1] > 100


async def test_a_request_that_no_waiting_helps_is_told_so(tenants: Tenants) -> None:
    key = tenants.keys.key("a", tokens_per_minute=100)
    refused = await tenants.door.ask(key, BASE, max_tokens=500)
    assert refused.status_code == 429
    assert "retry-after" not in refused.headers
    assert "ask for less" in refused.json()["error"]["message"]
    assert limits(refused, "tokens")[0] == 100
    assert (await tenants.door.ask(key, BASE, max_tokens=50)).status_code == 200


async def test_failures_give_back_what_they_took_and_callers_faults_their_tokens(
    tenants: Tenants, redis: Redis
) -> None:
    key = tenants.keys.key("a", requests_per_minute=3, tokens_per_minute=1000)
    tenants.engines["a", "demo"].script.append((500, "generation", "CUDA"))
    assert (await tenants.door.ask(key, BASE, max_tokens=500)).status_code == 503

    async def is_given_back() -> bool:
        return await levels(redis, key) == (0, 0)

    await until(is_given_back)
    assert (await tenants.door.ask(key, "no-such-adapter", max_tokens=500)).status_code == 404

    async def is_a_request() -> bool:
        requests, tokens = await levels(redis, key)
        return 0 < requests <= 1 and tokens == 0

    await until(is_a_request)


async def test_a_stream_that_its_caller_leaves_counts_what_came(tenants: Tenants, redis: Redis) -> None:
    key = tenants.keys.key("a", tokens_per_minute=10_000)
    tenants.engines["a", "demo"].script.append("endless")
    async with tenants.door.client(key) as client:
        stream = client.generate_stream(QUERY, pool="demo", base=True, max_new_tokens=9000)
        for _ in range(20):
            await anext(stream)
        assert (await levels(redis, key))[1] > 4000
        await stream.aclose()

    async def is_settled() -> bool:
        return (await levels(redis, key))[1] < 2000

    await until(is_settled)


async def test_decisions_alone_count_as_requests(tenants: Tenants) -> None:
    key = tenants.keys.key("a", requests_per_minute=2, tokens_per_minute=5)
    body = {"query": QUERY, "pool": "demo"}
    answers = [await tenants.door.send("POST", "/v1/route", key, body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [limits(answer, "requests")[1] for answer in answers] == [1, 0, 0]
    problem = answers[2].json()
    assert (problem["reason"], problem["status"]) == ("QUOTA_EXCEEDED", 429)
    assert int(answers[2].headers["retry-after"]) <= 30


async def test_grpc_says_what_is_left_and_when_to_come_again(tenants: Tenants) -> None:
    key = tenants.keys.key("a", requests_per_minute=1)
    async with grpc.aio.insecure_channel(tenants.door.grpc) as channel:
        call = GatewayServiceStub(channel).Generate(
            pb.GenerateRequest(prompt=QUERY, pool="demo", base=True),
            metadata=(("authorization", f"Bearer {key}"),),
        )
        await call
        trailing = dict(await call.trailing_metadata())
        assert trailing["x-ratelimit-remaining-requests"] == "0"
        assert trailing["x-ratelimit-reset-requests"] == "1m0s"
    async with tenants.door.client(key) as client:
        with pytest.raises(Exhausted) as refused:
            await client.generate(QUERY, pool="demo", base=True)
    assert refused.value.reason == "QUOTA_EXCEEDED"
    assert 1 <= int(refused.value.metadata["retry_after_seconds"]) <= 60
    assert refused.value.metadata["x-ratelimit-limit-requests"] == "1"


@pytest.mark.parametrize("fallback", ["refuse", "allow"])
async def test_limits_are_refused_or_unchecked_while_redis_is_away_as_chosen(
    encoder: Encoder, tmp_path: Path, fallback: str
) -> None:
    port = free_port()
    valkey = valkey_process(tmp_path, port)
    options: dict[str, Any] = {"redis_url": valkey_url(port, 0), "quota_fallback": fallback}
    async with tenants_standing(encoder, **options) as tenants:
        limited = tenants.keys.key("a", requests_per_minute=1000)
        free = tenants.keys.key("a")

        async def is_counted() -> bool:
            return "x-ratelimit-limit-requests" in (await tenants.door.ask(limited, BASE)).headers

        with running(valkey) as process:
            await until(is_counted)
            process.send_signal(signal.SIGKILL)
            process.wait()
            answer = await tenants.door.ask(limited, BASE)
            if fallback == "refuse":
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (503, "quota_unavailable")
                assert answer.headers["retry-after"] == "1"
            else:
                assert (answer.status_code, answer.headers["x-lorauter-quota"]) == (200, "unchecked")
            assert (await tenants.door.ask(free, BASE)).status_code == 200
        outcome = "allowed" if fallback == "allow" else "refused"
        metrics = (await tenants.door.send("GET", "/metrics", "")).text
        assert f'lorauter_gateway_quota_unchecked_total{{outcome="{outcome}"}}' in metrics
        with running(valkey):
            await until(is_counted)


async def test_without_redis_limits_cannot_be_held(encoder: Encoder) -> None:
    async with tenants_standing(encoder) as tenants:
        refused = await tenants.door.ask(tenants.keys.key("a", requests_per_minute=9), BASE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "quota_unavailable")
