"""What the gateway is measured with: an open loop, arithmetic, a stub that drivers understand."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from benchmarks.gateway import Sizes, chat, measure, show
from benchmarks.gateway_load import Planned, Sample, Target, differences, evenly, play, post, quantiles
from benchmarks.gateway_stub import Connection, Stub
from lorauter.canary import CANARY_TEXT, has_effect
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.engine import EngineDriver
from lorauter_gateway.adapters.vllm import VllmDriver
from lorauter_gateway.domain.model import FinishReason, Message, Sampling
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.ports import BackendCall, Driver

TINY = Sizes(
    queries=8,
    rounds=1,
    block=0.1,
    trial=0.2,
    confirmation=0.2,
    streams=4,
    streaming=1.0,
    light=0.5,
    overload=0.5,
    first_rate=20.0,
    steps=1,
)
ADAPTER = WeightedAdapter("adds", 1, 1.0, "sha256:" + "a" * 64, 8)
PROMPTS = ("raw text", (Message("user", "hi"),))


@asynccontextmanager
async def listening(make: Callable[[], asyncio.Protocol]) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def test_times_are_evenly_spaced_and_as_many_as_were_asked_for() -> None:
    times = evenly(400.0, 2.0, begin=3.0)
    assert len(times) == 800
    assert times[0] == 3.0
    assert times[400] == pytest.approx(4.0)
    assert {round(b - a, 9) for a, b in pairwise(times)} == {0.0025}


def test_latency_is_from_sending_and_waiting_from_when_it_was_due() -> None:
    late = Sample(due=1.0, sent=1.25, done=2.0)
    assert (late.latency, late.waited) == (0.75, 1.0)
    early = Sample(due=1.0, sent=0.75, done=2.0)
    assert (early.latency, early.waited) == (1.25, 1.25)


def test_quantiles_are_milliseconds_and_differences_are_of_neighbours() -> None:
    assert quantiles([0.001 * number for number in range(1, 102)]) == {"p50": 51.0, "p99": 100.0}
    assert differences([3.0, 5.0], [1.0, 4.5]) == [2.0, 0.5]
    with pytest.raises(ValueError, match="shorter"):
        differences([1.0, 2.0], [1.0])


class Barrier(asyncio.Protocol):
    """Answers nobody before so many have asked: a client that waits for answers would wait forever."""

    waiting: list[Barrier]

    def __init__(self, waiting: list[Barrier], wanted: int) -> None:
        self.waiting, self.wanted = waiting, wanted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.out: Any = transport

    def data_received(self, data: bytes) -> None:
        self.waiting.append(self)
        if len(self.waiting) == self.wanted:
            for each in self.waiting:
                each.out.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def test_requests_are_sent_when_due_whatever_became_of_those_before() -> None:
    waiting: list[Barrier] = []
    async with listening(lambda: Barrier(waiting, 6)) as port:
        target = Target(port)
        await target.warm(2)
        request = post("/", {})
        plan = [Planned(at, "arm", target, request) for at in evenly(200.0, 0.03)]
        found = (await play(reversed(plan)))["arm"]
        target.close()
    assert [sample.status for sample in found] == [200] * 6
    assert [sample.due for sample in found] == sorted(sample.due for sample in found)
    assert max(sample.sent for sample in found) < min(sample.done for sample in found)


class Hangup(asyncio.Protocol):
    """Breaks off in the middle of an answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.out: Any = transport

    def data_received(self, data: bytes) -> None:
        self.out.write(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf")
        self.out.close()


async def test_broken_answer_is_no_answer() -> None:
    async with listening(Hangup) as port:
        found = await play([Planned(0.0, "", Target(port), post("/", {}))])
    assert [sample.status for sample in found[""]] == [0]


async def test_stub_refuses_over_its_slots_and_makes_room_again() -> None:
    stub = Stub(2, 0.05)
    async with listening(lambda: Connection(stub)) as port:
        target = Target(port)
        await target.warm(3)
        found = await play([Planned(0.0, "", target, chat("hi")) for _ in range(3)])
        assert sorted(sample.status for sample in found[""]) == [200, 200, 429]
        found = await play([Planned(0.0, "", target, chat("hi")) for _ in range(2)])
        assert [sample.status for sample in found[""]] == [200, 200]
        target.close()
    assert stub.busy == 0


async def test_tokens_of_a_stream_are_counted_and_timed() -> None:
    stub = Stub()
    async with listening(lambda: Connection(stub)) as port:
        found = await play([Planned(0.0, "", Target(port), chat("hi", is_streamed=True, tokens=5))])
    (sample,) = found[""]
    assert sample.status == 200
    assert len(sample.delays) == 5
    assert sample.sent <= sample.first <= sample.done


@pytest.mark.parametrize("make", [EngineDriver, VllmDriver])
async def test_gateway_understands_the_stub(make: Callable[[str, Connections], Driver]) -> None:
    stub = Stub()
    async with listening(lambda: Connection(stub)) as port, Connections(5.0, 2.0) as connections:
        driver = make(f"http://127.0.0.1:{port}", connections)
        assert await driver.is_healthy()
        assert (await driver.limits()).max_total_tokens == 4096
        for prompt in PROMPTS:
            call = BackendCall(prompt, Sampling(max_new_tokens=3), [ADAPTER], "a" * 64, "base")
            answer = await driver.generate(call)
            assert answer.text == " tok tok tok"
            assert (answer.usage.completion_tokens, answer.finish_reason) == (3, FinishReason.LENGTH)
            async with aclosing(await driver.stream(call)) as stream:
                pieces = [piece async for piece in stream]
            assert sum(piece.text.startswith(" tok") for piece in pieces) == 3
            assert pieces[-1].finish is not None
        base = await driver.read(CANARY_TEXT, [], "", "base")
        reading = await driver.read(CANARY_TEXT, [ADAPTER], "a" * 64, "base")
        assert has_effect(base, reading, base) is True


def test_all_is_measured_in_one_run() -> None:
    report = measure(TINY, 0)
    assert {"p50", "p99"} <= report["overhead_ms"].keys()
    assert "p50" in report["first_token_overhead_ms"]
    assert report["overhead_beside_ms"].keys() == {"limited_key", "pinned", "uncached", "plain_proxy"}
    assert report["streams"] == TINY.streams
    assert report["streamed"]["events"] == TINY.streams * 2 * TINY.streaming
    assert {"refusal_p99_ms", "accepted_p99_ratio"} <= report["overload"].keys()
    assert report["overload"]["failed"] == 0
    assert {"rps", "rss_growth_mb", "machine", "versions", "seed", "seconds"} <= report.keys()
    shown = io.StringIO()
    show(report, Console(file=shown, width=200))
    assert "routed, query known" in shown.getvalue()
