"""Many requests at a time, and what became of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.protocol_servers.models import HashModel, collected
from tests.protocol_servers.weights import Weights


@dataclass
class Outcome:
    """What a client got. ``status`` is 0 where there was no answer, ``pieces`` counts those of a stream."""

    number: int
    streams: bool
    status: int = 0
    text: str = ""
    pieces: int = 0
    is_whole: bool = False
    error: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_begun(self) -> bool:
        """Whether the client saw any of the answer."""
        return self.pieces > 0 or self.is_whole


async def ask(http: aiohttp.ClientSession, url: str, outcome: Outcome, body: Mapping[str, Any]) -> Outcome:
    """Asks a gateway's TGI route, and notes what came."""
    path = "/generate_stream" if outcome.streams else "/generate"
    try:
        async with http.post(url + path, json=body) as response:
            outcome.status, outcome.headers = response.status, dict(response.headers)
            if response.status != 200:
                outcome.error = (await response.text())[:300]
            elif not outcome.streams:
                outcome.text = (await response.json())["generated_text"]
                outcome.is_whole = True
            else:
                await _read_stream(response, outcome)
    except aiohttp.ClientError as error:
        outcome.error = repr(error)
    return outcome


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome) -> None:
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        event = json.loads(line[5:])
        if "error" in event:
            outcome.error = str(event["error"])
            return
        outcome.pieces += 1
        if event["generated_text"] is not None:
            outcome.text, outcome.is_whole = event["generated_text"], True


@asynccontextmanager
async def sustained(
    at_a_time: int, one: Callable[[aiohttp.ClientSession, int], Awaitable[Outcome]]
) -> AsyncIterator[list[Outcome]]:
    """Keeps so many requests under way until the block ends, then lets them end; yields the outcomes."""
    outcomes: list[Outcome] = []
    numbers = iter(range(1_000_000))
    ends = asyncio.Event()
    async with _session() as http:

        async def client() -> None:
            while not ends.is_set():
                outcomes.append(await one(http, next(numbers)))

        clients = [asyncio.create_task(client()) for _ in range(at_a_time)]
        try:
            yield outcomes
        finally:
            ends.set()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*clients)


async def each(
    at_a_time: int, numbers: range, one: Callable[[aiohttp.ClientSession, int], Awaitable[Outcome]]
) -> list[Outcome]:
    """Asks for all numbers, so many at a time; returns the outcomes."""
    left: Iterator[int] = iter(numbers)
    outcomes: list[Outcome] = []
    async with _session() as http:

        async def client() -> None:
            for number in left:
                outcomes.append(await one(http, number))

        await asyncio.gather(*(client() for _ in range(at_a_time)))
    return outcomes


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60), trust_env=False
    )


async def expected(prompt: str, weights: Weights, tokens: int, answer_tokens: int = 0) -> str:
    """Returns what a protocol server without an engine answers."""
    model = HashModel(4096, answer_tokens)
    _, finish = await collected(model.generate(prompt, weights, {"max_new_tokens": tokens}))
    return finish.text


async def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Waits until something holds; fails when it does not come true."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110  -- it lies behind a socket
            await asyncio.sleep(0.02)
