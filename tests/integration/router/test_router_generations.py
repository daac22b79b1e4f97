"""Which generation an answer is of: swaps, waiting, staleness, other encoders."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
from prometheus_client import REGISTRY

from lorauter.identifiers import decode_generation
from lorauter.index import MemoryIndex, QdrantIndex
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.model import Snapshot
from lorauter_suite.embedded.index import index_process, index_url
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running


async def test_every_answer_is_of_one_generation_when_snapshots_change_meanwhile(lab) -> None:
    index = lab.index(1)
    done = threading.Event()

    def publish() -> None:
        generation = 1
        while not done.wait(0.01):
            generation += 1
            index.publish(lab.snapshot(generation), [])

    publisher = threading.Thread(target=publish)
    async with lab.router_on(index) as router:

        async def ask() -> list[pb.RouteResponse]:
            answers: list[pb.RouteResponse] = []
            batch = pb.RouteBatchRequest(requests=[pb.RouteRequest(query=lab.query)] * 20)
            for _ in range(60):
                answers.append(await router.route())
                responses = (await router.stub.RouteBatch(batch, timeout=30)).responses
                assert len({response.generation for response in responses}) == 1
                answers.extend(responses)
            return answers

        publisher.start()
        try:
            answers = [a for part in await asyncio.gather(*(ask() for _ in range(6))) for a in part]
        finally:
            done.set()
            publisher.join()
    for answer in answers:
        generation = decode_generation(answer.generation, "default")
        assert answer.best_single.digest == lab.digest_of("abacus", generation)
        assert all(a.digest == lab.digest_of(a.adapter_id, generation) for a in answer.adapters)
    assert len({answer.generation for answer in answers}) >= 5


async def test_generation_is_awaited_when_it_comes_in_time(lab) -> None:
    index = lab.index(1)
    async with lab.router_on(index) as router:
        waiting = asyncio.create_task(router.route(min_generation=lab.token(3)))
        await asyncio.sleep(0)
        index.publish(lab.snapshot(2), [])
        await lab.eventually(lambda: router.served().generation == lab.token(2))
        assert not waiting.done()
        index.publish(lab.snapshot(3), [])
        assert (await waiting).generation == lab.token(3)


async def test_call_is_refused_with_the_current_generation_when_the_wanted_one_does_not_come(
    router, lab
) -> None:
    error = await router.refusal(router.route(seconds=4, min_generation=lab.token(8)))
    assert (error.grpc_status.name, error.reason) == ("FAILED_PRECONDITION", "GENERATION_NOT_REACHED")
    assert error.metadata["current"] == lab.token(7)


async def test_call_ends_at_its_deadline_when_encoding_takes_longer(lab) -> None:
    release = threading.Event()

    class SlowEncoder:
        digest, dimension = lab.encoder.digest, lab.encoder.dimension

        def encode(self, texts: Sequence[str]) -> object:
            release.wait(20)
            return lab.encoder.encode(texts)

    index = lab.index(1)
    async with lab.router_on(index, SlowEncoder()) as router:
        error = await router.refusal(router.route(seconds=0.2))
        assert error.grpc_status is grpc.StatusCode.DEADLINE_EXCEEDED
        release.set()
        assert (await router.route()).best_single.adapter_id == "abacus"


async def test_last_snapshot_is_served_as_stale_when_the_index_process_is_away(lab) -> None:
    port = free_port()
    publisher, index = QdrantIndex(index_url(port)), QdrantIndex(index_url(port), timeout_seconds=1)
    async with AsyncExitStack() as stack:
        with running(index_process(port)):
            publisher.publish(lab.snapshot(5), [])
            router = await stack.enter_async_context(lab.router_on(index))
            assert not (await router.route()).stale
        await lab.eventually(lambda: router.served().stale)
        response = await router.route()
        assert (response.stale, response.generation) == (True, lab.token(5))
        assert response.best_single.digest == lab.digest_of("abacus", 5)
        with running(index_process(port)):
            empty_polls = polls("INDEX_EMPTY")
            await lab.eventually(lambda: polls("INDEX_EMPTY") > empty_polls)
            assert (await router.route()).stale
            publisher.publish(lab.snapshot(6), [])
            await lab.eventually(lambda: not router.served().stale)
            response = await router.route()
            assert (response.stale, response.generation) == (False, lab.token(6))


def polls(reason: str) -> float:
    return REGISTRY.get_sample_value("lorauter_router_poll_failures_total", {"reason": reason}) or 0.0


async def test_call_is_unavailable_until_something_is_published_when_the_index_is_empty(lab) -> None:
    index = MemoryIndex()
    async with lab.router_on(index) as router:
        for call in (
            router.route(),
            router.stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=30),
            router.stub.ListServableAdapters(pb.ListServableAdaptersRequest(), timeout=30),
        ):
            error = await router.refusal(call)
            assert (error.grpc_status.name, error.reason) == ("UNAVAILABLE", "NO_SNAPSHOT")
            assert "nothing is published" in error.message
        everything = pb.GetSnapshotRequest(all_tenants=True)
        assert list((await router.stub.GetSnapshot(everything, timeout=30)).pools) == []
        assert router.follower.lacking() == ""
        index.publish(lab.snapshot(1), [])
        await lab.eventually(lambda: "default" in router.follower.current().served)
        assert (await router.route()).generation == lab.token(1)


async def test_snapshot_is_not_swapped_in_when_another_encoder_made_it(lab) -> None:
    foreign = replace(lab.snapshot(2), encoder_digest="sha256:other")
    index = MemoryIndex()
    index.publish(foreign, [])
    async with lab.router_on(index) as router:
        error = await router.refusal(router.route())
        assert error.reason == "NO_SNAPSHOT"
        assert "LORAUTER_ENCODER" in router.follower.lacking()
        index.publish(lab.snapshot(3), [])
        await lab.eventually(lambda: not router.follower.lacking())
        index.publish(replace(foreign, generation=4), [])
        await lab.eventually(lambda: router.served().stale)
        assert (await router.route()).generation == lab.token(3)


class Restored(MemoryIndex):
    """An index of which another state can take the place."""

    def __init__(self, source: MemoryIndex) -> None:
        super().__init__()
        self.source = source

    def published(self, tenant: str) -> tuple[int, str] | None:
        return self.source.published(tenant)

    def markers(self, tenants: Sequence[str] = ()) -> Mapping[str, tuple[int, str]]:
        return self.source.markers(tenants)

    def read(self, tenant: str, held: Snapshot | None = None) -> Snapshot:
        return self.source.read(tenant, held)


async def test_snapshot_stays_when_the_index_goes_back(lab) -> None:
    index = Restored(lab.index(9))
    async with lab.router_on(index) as router:
        index.source = lab.index(4)
        await lab.eventually(lambda: router.served().stale)
        assert (await router.route()).generation == lab.token(9)


async def test_an_older_snapshot_is_served_when_the_index_stays_behind(lab) -> None:
    index = Restored(lab.index(9))
    async with lab.router_on(index, believe_seconds=2) as router:
        index.source = lab.index(4)
        await lab.eventually(lambda: router.served().stale)
        assert (await router.route()).generation == lab.token(9)
        await lab.eventually(lambda: not router.served().stale)
        assert (await router.route()).generation == lab.token(4)
        index.source.publish(lab.snapshot(5), [])
        await lab.eventually(lambda: router.served().snapshot.generation == 5)
