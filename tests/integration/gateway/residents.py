"""A server that loads adapters and notes what must not happen to it, and gateways that share its slots."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from lorauter.errors import Unavailable
from lorauter.router.v1.router_pb2 import PoolSnapshot
from lorauter_gateway.adapters.books import Link, RedisBooks
from lorauter_gateway.domain.limits import RetryBudget
from lorauter_gateway.domain.model import Answer, FinishReason, Usage
from lorauter_gateway.domain.plan import Skipped, WeightedAdapter
from lorauter_gateway.ports import BackendCall, BackendFailed, Endpoint, Limits, Takes
from lorauter_gateway.service.canaries import Canaries, Subject
from lorauter_gateway.service.replica import Pool, Replica
from lorauter_gateway.service.residence import Residence

NAMES = [f"{number:064x}" for number in range(8)]


class Server:
    """A LoadingDriver in this process with ``slots``. ``violations`` names what no gateway may cause."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.names: dict[str, str] = {}
        self.in_use: Counter[str] = Counter()
        self.loads: Counter[str] = Counter()
        self.unloads: Counter[str] = Counter()
        self.violations: list[str] = []
        self.without_effect: set[str] = set()
        self.refuses: set[str] = set()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.began = asyncio.Event()
        self.may_list = asyncio.Event()
        self.may_list.set()
        self.was_listed = asyncio.Event()
        self.asked: list[str] = []
        self.reads: Counter[str] = Counter()
        self.says_missing = True
        self.strength = 0.5
        self.healthy = True
        self._loading: set[str] = set()

    async def load(self, name: str, path: str) -> None:
        if name in self.names:
            return
        if name in self.refuses:
            raise BackendFailed(Unavailable("LOAD_REFUSED", "its rank is too large"), try_elsewhere=True)
        if name in self._loading:
            self.violations.append(f"{name[-2:]} is loaded twice at a time")
        self._loading.add(name)
        try:
            self.began.set()
            await self.may_load.wait()
            await asyncio.sleep(0.001)
        finally:
            self._loading.discard(name)
        if len(self.names) >= self.slots:
            self.violations.append(f"{name[-2:]} is one more than there are slots")
        self.names[name] = path
        self.loads[name] += 1

    async def unload(self, name: str) -> None:
        await asyncio.sleep(0.001)
        if self.in_use[name]:
            self.violations.append(f"{name[-2:]} is unloaded in use")
        if self.names.pop(name, None) is not None:
            self.unloads[name] += 1

    async def loaded(self) -> Mapping[str, str]:
        listed = dict(self.names)
        self.was_listed.set()
        await self.may_list.wait()
        return listed

    async def read(
        self, text: str, adapters: Sequence[WeightedAdapter], served_name: str, base_model: str
    ) -> Sequence[float]:
        self.reads[served_name] += 1
        has_effect = served_name in self.names and served_name not in self.without_effect
        return [-1.0 - self.strength * has_effect * (n % 3) for n in range(20)]

    def was_cut(self) -> bool:
        return False

    async def is_healthy(self) -> bool:
        return self.healthy

    async def limits(self) -> Limits:
        return Limits()

    async def generate(self, call: BackendCall) -> Answer:
        self.asked.append(call.served_name)
        if call.served_name and call.served_name not in self.names:
            if self.says_missing:
                error = Unavailable("ADAPTER_NOT_SERVABLE", "unknown")
                raise BackendFailed(error, try_elsewhere=True, is_missing=True)
            return Answer("base", FinishReason.EOS_TOKEN, Usage(1, 1))
        return Answer(call.served_name or "base", FinishReason.EOS_TOKEN, Usage(1, 1))

    async def stream(self, call: BackendCall) -> Any:
        raise NotImplementedError


class Member:
    """One gateway's part in sharing a server."""

    def __init__(self, server: Server, books: RedisBooks | None) -> None:
        endpoint = Endpoint(
            "vllm@http://vllm", "vllm", "vllm", "http://vllm", Takes.LOADS, server, slots=server.slots,
            adapters_path="/adapters/",
        )  # fmt: skip
        pool = Pool(PoolSnapshot(tenant="default", pool="demo"), RetryBudget(lambda: 0.0))
        self.server = server
        self.books = books
        self.replica = Replica(endpoint, pool, asyncio.get_running_loop().time, 1.0, 256)
        self.residence = Residence(self.replica, books, Canaries())

    async def hold(self, name: str, may_wait: bool = True) -> None:
        await self.residence.hold(Subject(name), may_wait)

    @asynccontextmanager
    async def using(self, name: str) -> Any:
        """Uses an adapter as a request does, and notes where it is not there."""
        await self.hold(name)
        self.server.in_use[name] += 1
        try:
            if name not in self.server.names:
                self.server.violations.append(f"{name[-2:]} is used and not there")
            yield
        finally:
            self.server.in_use[name] -= 1
            self.residence.drop(name)

    async def skips(self, name: str) -> Skipped:
        """Returns why an adapter is not served."""
        try:
            await self.hold(name)
        except Skipped as skipped:
            return skipped
        self.residence.drop(name)
        raise AssertionError(f"{name} is served")


@asynccontextmanager
async def sharing(server: Server, url: str | None, count: int = 1, **seconds: float) -> Any:
    """Yields so many gateways that share a server; ``seconds`` are those of RedisBooks."""
    links = [Link(url) for _ in range(count)] if url else []
    members = [Member(server, RedisBooks(link, **seconds)) for link in links] or [Member(server, None)]
    try:
        yield members
    finally:
        for member in members:
            await member.residence.close()
        for link in links:
            await link.close()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Polls until ``holds()``, for at most 10 s."""
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110  -- what is awaited passes on another clock
            await asyncio.sleep(0.02)
