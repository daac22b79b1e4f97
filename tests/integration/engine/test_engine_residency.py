"""Thousands of adapters in the store, few in memory: cold ones are loaded while others generate."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from lorauter.errors import Exhausted
from lorauter.lora.check import read_modules
from lorauter.lora.config import AdapterConfig
from lorauter.lora.store import AdapterStore
from lorauter_engine.model.network import Network
from lorauter_engine.service.prepare import Wish
from tests.budgets import tries

REGISTERED = tries(2000, 400)
RESIDENT = 64
COLD = AdapterConfig("test/tiny", 2, 4.0, False, ("q_proj",))


class GatedStore(AdapterStore):
    """A store whose disk stands still for one adapter until the gate opens."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gated = ""
        self.reached = threading.Event()
        self.gate = threading.Event()

    def path(self, digest: str) -> Path:
        """As in AdapterStore, after the gate."""
        if digest == self.gated:
            self.reached.set()
            assert self.gate.wait(60)
        return super().path(digest)


@pytest.fixture(scope="module")
def many(pool: Any, residencies: Any, tmp_path_factory) -> tuple[Any, list[str]]:
    """The pool with a store of 2,000 small adapters, and their digests."""
    folder = tmp_path_factory.mktemp("many")
    store, modules = GatedStore(folder / "store"), read_modules(pool.base)

    def put(number: int) -> str:
        return store.put(residencies.random_adapter(folder / str(number), modules, COLD, number))

    with ThreadPoolExecutor(8) as workers:
        digests = list(workers.map(put, range(REGISTERED)))
    assert len(set(digests)) == REGISTERED
    return dataclasses.replace(pool, store=store), digests


def job(parts: Any, digest: str, tokens: int = 4, **wish: Any) -> Any:
    return parts.preparation.job("the cat", Wish(max_new_tokens=tokens, adapters=[(digest, 1.0)], **wish))


async def test_cold_adapters_are_served_within_the_bounds_when_many_are_registered(many, engine_with) -> None:
    pool, digests = many
    with engine_with(on=pool, resident=RESIDENT) as parts:
        bound = RESIDENT * adapter_bytes(parts)
        loads, evictions = (
            counted("adapter_loads_total", outcome="loaded"),
            counted("adapter_evictions_total"),
        )
        order = np.random.default_rng(0).permutation(digests).tolist()
        answers: dict[str, str] = {}
        running = asyncio.Semaphore(16)

        async def ask(digest: str) -> None:
            async with running:
                answers[digest] = (await parts.engine.generate(job(parts, digest))).finish.text
                assert len(parts.residency.resident()) <= RESIDENT
                assert parts.residency.size_bytes() <= bound

        await asyncio.gather(*map(ask, order))
        assert len(answers) == REGISTERED
        assert parts.residency.pinned() == 0
        assert len(parts.residency.resident()) == RESIDENT
        assert counted("adapter_loads_total", outcome="loaded") - loads >= REGISTERED
        assert counted("adapter_evictions_total") - evictions >= REGISTERED - RESIDENT
        assert counted("resident_adapters") == RESIDENT
        assert counted("resident_bytes") == bound
        # The least recent of all is cold again, and says the same.
        assert order[0] not in parts.residency.resident()
        again = await parts.engine.generate(job(parts, order[0]))
        assert again.finish.text == answers[order[0]]
        assert parts.residency.resident()[-1] == order[0]


async def test_running_rows_go_on_while_a_cold_adapter_is_loaded(many, engine_with) -> None:
    pool, digests = many
    store, warm, cold = pool.store, digests[0], digests[1]
    store.reached.clear()
    store.gate.clear()
    with engine_with(on=pool) as parts:
        await parts.engine.generate(job(parts, warm))
        store.gated = cold
        try:
            loading = asyncio.create_task(parts.engine.generate(job(parts, cold)))
            assert await asyncio.to_thread(store.reached.wait, 60)
            stream = parts.engine.stream(job(parts, warm, 200, do_sample=True, seed=3, temperature=9.0))
            assert [(await anext(stream)).index for _ in range(50)] == list(range(1, 51))
            assert not loading.done()
            store.gate.set()
            assert (await loading).finish.generated_tokens > 0
            assert (await anext(stream)).index == 51
            await stream.aclose()
        finally:
            store.gate.set()
            store.gated = ""


def test_memory_stays_bounded_when_adapters_load_at_once(many, residencies) -> None:
    pool, digests = many
    network = Network(pool.base, residencies.cpu)
    size = adapter_bytes_of(network)
    residency = residencies(network, pool.store, max_bytes=3 * size)
    barrier = threading.Barrier(8)
    served: list[str] = []
    refused: list[str] = []

    def use(worker: int) -> None:
        barrier.wait()
        for digest in digests[worker * 40 : worker * 40 + 40]:
            try:
                adapters = residency.acquire(((digest, 1.0),))
            except Exhausted as error:
                refused.append(error.reason)
                continue
            assert residency.size_bytes() <= 3 * size
            served.append(digest)
            residency.release(adapters)

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(use, range(8)))
    assert len(served) + len(refused) == 320
    assert set(refused) <= {"ADAPTERS_BUSY"}
    assert len(served) > 40
    assert residency.size_bytes() == len(residency.resident()) * size <= 3 * size
    held = [residency.acquire(((digest, 1.0),)) for digest in digests[:3]]
    with pytest.raises(Exhausted):
        residency.acquire(((digests[3], 1.0),))
    assert residency.size_bytes() == 3 * size
    for adapters in held:
        residency.release(adapters)


def counted(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(f"lorauter_engine_{name}", labels)
    assert value is not None
    return value


def adapter_bytes(parts: Any) -> int:
    return adapter_bytes_of(parts.network)


def adapter_bytes_of(network: Network) -> int:
    """The bytes of one of the small adapters in float32."""
    layers = [shape for name, shape in network.modules.items() if name.endswith(COLD.target_modules)]
    return sum(4 * COLD.rank * (width + out) for width, out in layers)
