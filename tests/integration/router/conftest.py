"""Snapshots of a small real pool, and routers in this process that serve them over real gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import pytest

from lorauter.client.status import to_error
from lorauter.encoder import Encoder
from lorauter.errors import LorauterError
from lorauter.identifiers import encode_generation
from lorauter.index import MemoryIndex, SnapshotIndex
from lorauter.router.v1 import router_pb2 as pb
from lorauter.router.v1.router_pb2_grpc import RouterServiceStub
from lorauter.routing import TaskExamples, fit_profile, represent, term_frequencies
from lorauter.routing.model import Adapter, Affinity, Backend, Pool, Snapshot, Task
from lorauter_router.config import Settings
from lorauter_router.domain import ServedSnapshot
from lorauter_router.main import Router, wired

TEXTS = {
    "mood": ["a wonderful film", "the plot was dull and slow", "I loved every minute of it", "a boring film"],
    "capital": ["the capital of France", "which city is the capital of Peru", "name Japan's capital city"],
    "sum": ["what is 3 plus 4", "add 12 and 30", "compute the sum of 7 and 9", "the total of 5 and 6"],
}
BEST = {"mood": "critic", "capital": "atlas", "sum": "abacus"}
QUERY = "what is 8 plus 5"


class RunningRouter:
    """A router that runs in this process, and a stub on it."""

    def __init__(self, router: Router, stub: Any) -> None:
        self.follower = router.follower
        self.stub = stub

    async def route(self, seconds: float = 10, **fields: Any) -> pb.RouteResponse:
        return await self.stub.Route(pb.RouteRequest(**{"query": QUERY, **fields}), timeout=seconds)

    def served(self, tenant: str = "default") -> ServedSnapshot:
        """What is served of a tenant now."""
        return self.follower.current().of(tenant)

    async def refusal(self, call: grpc.aio.UnaryUnaryCall) -> LorauterError:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert "Traceback" not in (refused.value.details() or "")
        return to_error(refused.value)


class Lab:
    """Makes snapshots and routers on the real encoder."""

    query = QUERY

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._vectors = {name: encoder.encode(texts) for name, texts in TEXTS.items()}
        self._profile = fit_profile([TaskExamples(name, rows) for name, rows in self._vectors.items()])

    @staticmethod
    def token(generation: int, tenant: str = "default") -> str:
        """A generation as callers see it."""
        return encode_generation(generation, tenant)

    @staticmethod
    def digest_of(adapter: str, generation: int) -> str:
        """Every adapter's digest names the generation, so a mixed answer shows."""
        return f"sha256:{adapter}-{generation}"

    @staticmethod
    def words() -> set[int]:
        """The terms of all validation sets."""
        return {term for texts in TEXTS.values() for text in texts for term in term_frequencies(text)}

    def snapshot(self, generation: int, pools: Sequence[str] = ("p",)) -> Snapshot:
        tasks = tuple(
            Task(
                name,
                1,
                "exact_match",
                frozenset(),
                len(TEXTS[name]),
                represent(rows, TEXTS[name]).centroid,
                represent(rows, TEXTS[name]).terms,
                (Affinity(BEST[name], 1, 0.9, 20, 0.1), Affinity("base", 0, 0.1, 20, 0.1)),
            )
            for name, rows in self._vectors.items()
        )
        adapters = tuple(
            Adapter(name, 1, self.digest_of(name, generation), True, ("champion",)) for name in BEST.values()
        )
        backends = (Backend("engine", "engine", "http://127.0.0.1:1", False),)
        made = {
            name: Pool(name, "base-model", ("alias",), "ROUTE", self._profile, tasks, adapters, backends)
            for name in pools
        }
        return Snapshot("default", generation, "", self.encoder.digest, made)

    def index(self, generation: int, pools: Sequence[str] = ("p",)) -> MemoryIndex:
        index = MemoryIndex()
        index.publish(self.snapshot(generation, pools), [])
        return index

    @asynccontextmanager
    async def router_on(
        self, index: SnapshotIndex, encoder: Encoder | None = None, **overrides: Any
    ) -> AsyncIterator[RunningRouter]:
        own = {"tenants": overrides["tenant"]} if "tenant" in overrides else {}
        settings = Settings.model_validate(
            {"qdrant_url": "http://127.0.0.1:1", "access": "open", "poll_seconds": 0.05} | own | overrides
        )
        async with wired(settings, index, encoder or self.encoder) as router:
            port = await router.server.start("127.0.0.1", 0)
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    yield RunningRouter(router, RouterServiceStub(channel))
            finally:
                await router.server.stop(0)

    @staticmethod
    async def eventually(holds: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it did not come true in time"
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def lab(encoder: Encoder) -> Lab:
    return Lab(encoder)


@pytest.fixture
async def router(lab: Lab) -> AsyncIterator[RunningRouter]:
    """A router that serves generation 7."""
    serving: AbstractAsyncContextManager[RunningRouter] = lab.router_on(lab.index(7))
    async with serving as running:
        yield running
