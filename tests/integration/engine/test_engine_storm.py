"""A thousand callers who go away at random moments leave nothing behind and change nobody's answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tests.budgets import tries

LEAVERS = tries(1000, 250)
AT_ONCE = 24
LIMIT = 128

Body = dict[str, Any]


@pytest.fixture
async def client(launch: Any) -> AsyncIterator[httpx.AsyncClient]:
    with launch(LORAUTER_MAX_ROWS="16", LORAUTER_MAX_CONCURRENT_REQUESTS=str(LIMIT)) as address:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=AT_ONCE)
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits, trust_env=False) as made:
            yield made


def adapters(pool: Any, rng: np.random.Generator) -> list[Body]:
    names = rng.choice(sorted(pool.adapters), size=rng.integers(0, 4), replace=False)
    return [{"id": pool.adapters[name], "weight": float(rng.normal())} for name in names]


def long_body(pool: Any, rng: np.random.Generator) -> Body:
    # Hot sampling seldom meets the end by itself.
    parameters = {
        "max_new_tokens": 200,
        "do_sample": True,
        "temperature": 9.0,
        "seed": int(rng.integers(2**31)),
    }
    return {"inputs": "the cat sat", "parameters": parameters | {"adapters": adapters(pool, rng)}}


async def leave_stream(client: httpx.AsyncClient, pool: Any, rng: np.random.Generator) -> None:
    """Hangs up after some events, which may be none."""
    async with client.stream("POST", "/generate_stream", json=long_body(pool, rng)) as response:
        assert response.status_code == 200
        left = int(rng.integers(0, 12))
        async for _ in response.aiter_lines():
            if (left := left - 1) < 0:
                return


async def leave_call(client: httpx.AsyncClient, pool: Any, rng: np.random.Generator) -> None:
    """Hangs up while a call of one of the other kinds is under way: some round trips after its start."""
    body = long_body(pool, rng)
    items = [
        {"prompt": "a dog ran", "target": " far away", "adapters": adapters(pool, rng)} for _ in range(12)
    ]
    path, sent = [
        ("/generate", body),
        ("/generate_batch", {"items": items, "parameters": body["parameters"] | {"adapters": None}}),
        ("/score", {"items": items}),
    ][rng.integers(3)]
    call = asyncio.create_task(client.post(path, json=sent))
    for _ in range(int(rng.integers(0, 4))):
        await client.get("/health")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not await condition():
        assert time.monotonic() < deadline, "not in 30 s"
        await asyncio.sleep(0.02)


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    names = ("lorauter_engine_rows ", "lorauter_engine_queue{", "lorauter_engine_pinned_adapters ")
    return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line.startswith(names)}


@pytest.mark.timeout(300)
async def test_nothing_is_left_and_others_say_the_same_when_a_thousand_callers_leave(client, pool) -> None:
    rng = np.random.default_rng(0)
    stayers: list[Body] = [
        {
            "inputs": text,
            "parameters": {"max_new_tokens": 24, "details": True, "adapters": adapters(pool, rng)},
        }
        for text in ("the cat sat", "a dog ran over the hills", "mat", "saw a dog that ran far")
    ]

    async def answer(body: Body) -> list[int]:
        response = await client.post("/generate", json=body)
        assert response.status_code == 200, response.text
        return [token["id"] for token in response.json()["details"]["tokens"]]

    quiet = [await answer(body) for body in stayers]
    assert len(set(map(tuple, quiet))) == len(stayers)
    left, heard, storm_over = itertools.count(), [0], asyncio.Event()

    async def leavers(seed: int) -> None:
        own = np.random.default_rng(seed)
        while next(left) < LEAVERS:
            await (leave_stream if own.random() < 0.5 else leave_call)(client, pool, own)

    async def stay(place: int) -> None:
        while not storm_over.is_set():
            assert await answer(stayers[place]) == quiet[place]
            heard[0] += 1

    async with asyncio.TaskGroup() as listening:
        for place in range(len(stayers)):
            listening.create_task(stay(place))
        async with asyncio.TaskGroup() as leaving:
            for seed in range(AT_ONCE):
                leaving.create_task(leavers(seed))
        storm_over.set()
    assert heard[0] >= len(stayers)

    async def is_empty() -> bool:
        found = await gauges(client)
        assert len(found) == 4
        return not any(found.values())

    await until(is_empty)
    # Every place is free again: as many requests as are allowed at once, and none is refused.
    again = await asyncio.gather(*(answer(stayers[place % len(stayers)]) for place in range(LIMIT)))
    assert again == [quiet[place % len(stayers)] for place in range(LIMIT)]
