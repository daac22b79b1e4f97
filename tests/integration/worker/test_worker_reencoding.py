"""A worker embeds everything anew with another encoder while a router answers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient

from lorauter.encoder import DEFAULT_ENCODER, Encoder, encoder_directory, load_encoder
from lorauter.identifiers import decode_generation
from lorauter.index import QdrantIndex
from lorauter.index.collections import Collections
from lorauter.router.v1 import router_pb2 as pb
from lorauter.router.v1.router_pb2_grpc import RouterServiceStub
from lorauter.routing import compile_pool, decide
from lorauter.routing.model import Snapshot
from lorauter.routing.strategies.strategy import Query
from lorauter_router.config import Settings
from lorauter_router.main import wired
from lorauter_suite.embedded.index import index_process, index_url
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running
from tests.budgets import tries

CALLERS = tries(32, 8)
TOPICS = ("sorting letters", "french translation", "adding numbers", "counting vowels")
QUERIES = [f"{topic} question number {n}, please" for topic in TOPICS for n in (7, 8)]


@pytest.fixture(scope="module")
def other_encoder_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped weights, which give the first token's vector instead of the mean."""
    folder = tmp_path_factory.mktemp("encoder") / "cls"
    shutil.copytree(encoder_directory(DEFAULT_ENCODER), folder)
    pooling = folder / "1_Pooling" / "config.json"
    described = json.loads(pooling.read_text())
    described |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    pooling.write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def other_encoder(other_encoder_files: Path) -> Encoder:
    return load_encoder(str(other_encoder_files))


@pytest.fixture
def filled(registry: Any) -> Any:
    registry.add_pool()
    for number, topic in enumerate(TOPICS):
        registry.put_task(topic.split()[0], registry.questions(topic))
        registry.add_version(f"a{number}", f"sha256:{number}")
        registry.measure(topic.split()[0], f"a{number}", 1, 0.9)
        registry.measure(topic.split()[0], "base", 0, 0.2)
    return registry


@asynccontextmanager
async def router_on(worker: Any, *encoders: Encoder, **fields: Any) -> AsyncIterator[Any]:
    """A router at default settings that follows what the worker publishes; yields its stub."""
    settings = Settings.model_validate(
        {
            "qdrant_url": "http://127.0.0.1:1",
            "access": "open",
            "tenant": worker.tenant,
            "tenants": worker.tenant,
            "redis_url": None,
        }
        | fields
    )
    async with wired(settings, worker.index, *encoders) as router:
        port = await router.server.start("127.0.0.1", 0)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield RouterServiceStub(channel)
        finally:
            await router.server.stop(0)


class Callers:
    """Callers that route all the time, each the next query after its answer, and what they were told."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._done = False
        self.answers: list[tuple[str, pb.RouteResponse]] = []
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(CALLERS)]

    async def _ask(self, number: int) -> None:
        while not self._done:
            query = QUERIES[number % len(QUERIES)]
            request = pb.RouteRequest(query=query)
            self.answers.append((query, await self._stub.Route(request, timeout=30)))
            number += 1

    async def until_told(self, encoder: Encoder, generation: int, seconds: float = 60) -> None:
        """Waits until somebody was answered on this generation with this encoder."""
        async with asyncio.timeout(seconds):
            seen = 0
            while not any(
                told_of(answer) == (generation, encoder.digest) for _, answer in self.answers[seen:]
            ):
                self._raise_failure()
                seen = len(self.answers)
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Lets all callers finish; raises what any of them was refused with."""
        self._done = True
        await asyncio.gather(*self._tasks)

    def _raise_failure(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()


def told_of(answer: pb.RouteResponse) -> tuple[int, str]:
    return decode_generation(answer.generation, answer.tenant), answer.encoder_digest


def assert_as_decided(
    answers: list[tuple[str, pb.RouteResponse]], snapshots: list[Snapshot], *encoders: Encoder
) -> None:
    """Every answer is what its generation's tasks and its encoder's vector of the query say together."""
    decisions = {}
    for snapshot in snapshots:
        (encoder,) = (each for each in encoders if each.digest == snapshot.encoder_digest)
        pool = compile_pool(snapshot.pools["main"])
        for query in QUERIES:
            vector = encoder.encode([query])[0]
            key = (snapshot.generation, snapshot.encoder_digest, query)
            decisions[key] = (pool.profile.digest, decide(pool, Query(vector, query)))
    for query, answer in answers:
        profile, wanted = decisions[(*told_of(answer), query)]
        assert answer.profile_digest == profile
        assert answer.best_single.adapter_id == wanted.best_single.adapter_id
        assert [match.task_id for match in answer.tasks] == [match.task_id for match in wanted.tasks]
        np.testing.assert_allclose(
            [match.similarity for match in answer.tasks],
            [match.similarity for match in wanted.tasks],
            atol=1e-4,
        )


@pytest.mark.parametrize("limit", [50_000, 0], ids=["exact", "candidates"])
async def test_every_answer_is_of_one_encoder_when_another_takes_over_and_goes_back(
    filled: Any, make_index_worker: Callable[..., Any], encoder: Encoder, other_encoder: Encoder, limit: int
) -> None:
    first = make_index_worker("first")
    first.indexer.drain()
    snapshots = [first.snapshot()]
    async with router_on(
        first, encoder, other_encoder, exact_limit=limit, search_timeout_seconds=10.0
    ) as stub:
        callers = Callers(stub)
        generation = snapshots[-1].generation
        await callers.until_told(encoder, generation)

        second = make_index_worker("second", other_encoder)
        assert await asyncio.to_thread(second.indexer.reconcile) == 1
        snapshots.append(second.snapshot())
        assert (snapshots[-1].generation, snapshots[-1].encoder_digest) == (generation, other_encoder.digest)
        await callers.until_told(other_encoder, generation)

        later = filled.put_task("sorting", filled.questions("sorting words", 6))
        await asyncio.to_thread(second.indexer.drain)
        snapshots.append(second.snapshot())
        await callers.until_told(other_encoder, later)

        back = make_index_worker("back")
        assert await asyncio.to_thread(back.indexer.reconcile) == 1
        snapshots.append(back.snapshot())
        await callers.until_told(encoder, later)
        await callers.end()
    assert not any(answer.stale for _, answer in callers.answers)
    assert {told_of(answer) for _, answer in callers.answers} == {
        (snapshot.generation, snapshot.encoder_digest) for snapshot in snapshots
    }
    assert_as_decided(callers.answers, snapshots, encoder, other_encoder)
    assert back.encoder.texts == 6


async def test_router_stays_on_what_it_has_when_it_lacks_the_next_encoder(
    filled: Any, make_index_worker: Callable[..., Any], encoder: Encoder, other_encoder: Encoder
) -> None:
    first = make_index_worker("first")
    first.indexer.drain()
    async with router_on(first, encoder) as stub:
        make_index_worker("second", other_encoder).indexer.reconcile()
        async with asyncio.timeout(10):
            while not (answer := await stub.Route(pb.RouteRequest(query=QUERIES[0]))).stale:
                pass
        assert answer.encoder_digest == encoder.digest
        assert answer.best_single.adapter_id == "a0"


async def test_a_published_generation_is_picked_up_within_a_second_when_settings_are_the_defaults(
    filled: Any, make_index_worker: Callable[..., Any], encoder: Encoder
) -> None:
    worker = make_index_worker()
    worker.indexer.drain()
    async with router_on(worker, encoder) as stub:
        for number in range(5):
            generation = filled.put_task("newest", filled.questions(f"topic {number}"))
            await asyncio.to_thread(worker.indexer.drain)
            async with asyncio.timeout(1.0):
                while True:
                    answer = await stub.Route(pb.RouteRequest(query=QUERIES[0]))
                    if decode_generation(answer.generation, answer.tenant) >= generation:
                        break


def test_router_process_changes_over_when_it_was_told_of_the_next_encoder(
    filled: Any,
    make_index_worker: Callable[..., Any],
    run_router: Callable[..., Any],
    other_encoder: Encoder,
    other_encoder_files: Path,
) -> None:
    make_index_worker("first").indexer.drain()
    with run_router(LORAUTER_NEXT_ENCODER=str(other_encoder_files)) as router:
        filled.eventually(lambda: router.metric("lorauter_router_snapshot_swaps_total") == 1)
        make_index_worker("second", other_encoder).indexer.reconcile()
        filled.eventually(lambda: router.metric("lorauter_router_snapshot_swaps_total") == 2)
        assert router.metric("lorauter_router_snapshot_stale") == 0


def test_nothing_is_encoded_again_when_a_worker_goes_back_to_the_former_encoder(
    filled: Any, make_index_worker: Callable[..., Any], other_encoder: Encoder
) -> None:
    first = make_index_worker("first")
    first.indexer.drain()
    before = [task.address for task in first.pool().tasks]
    make_index_worker("second", other_encoder).indexer.reconcile()
    assert not set(before) & {task.address for task in first.pool().tasks}
    back = make_index_worker("back")
    assert back.indexer.reconcile() == 1
    assert back.encoder.texts == 0
    assert [task.address for task in back.pool().tasks] == before


def test_what_the_former_encoder_embedded_is_dropped_when_it_is_not_used_for_so_long(
    filled: Any, make_index_worker: Callable[..., Any], encoder: Encoder, other_encoder: Encoder
) -> None:
    port = free_port()
    with running(index_process(port)):
        client = QdrantClient(url=index_url(port))
        index = QdrantIndex(client)

        def held() -> set[str]:
            names = {collection.name for collection in client.get_collections().collections}
            return {encoding.digest for encoding in (encoder, other_encoder) if tasks_of(encoding) in names}

        first, second = make_index_worker("first"), make_index_worker("second", other_encoder)
        replace(first.indexer, index=index).drain()
        indexer = replace(second.indexer, index=index)
        assert indexer.reconcile() == 1
        assert held() == {encoder.digest, other_encoder.digest}
        at_once = indexer.settings.model_copy(update={"former_encoder_seconds": 0.0})
        assert replace(indexer, settings=at_once).reconcile() == 0
        assert held() == {other_encoder.digest}
        assert index.read(filled.tenant).encoder_digest == other_encoder.digest


def tasks_of(encoder: Encoder) -> str:
    return Collections.of("", encoder.digest).tasks
