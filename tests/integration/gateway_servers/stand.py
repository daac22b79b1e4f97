"""Real routers on snapshots of a test's choice, and real gateways in front of servers."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from lorauter.encoder import Encoder
from lorauter.index import MemoryIndex
from lorauter.routing import TaskExamples, fit_profile, represent
from lorauter.routing.model import (
    Adapter,
    Affinity,
    Backend,
    Composition,
    Manifest,
    Pool,
    Serving,
    Snapshot,
    Task,
)
from lorauter_router.config import Settings
from lorauter_router.main import wired
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.probes import http_ready
from lorauter_suite.embedded.process import ProcessSpec, running

T = TypeVar("T")
BASE_ID = "lorauter/demo-base"
POOL_ID = "demo"


class Background:
    """An event loop of its own thread, for servers that tests without one call."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns what ``work`` returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    @contextmanager
    def entered(self, context: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Holds an asynchronous context open."""
        value = self.run(_entered(context))
        try:
            yield value
        finally:
            self.run(_left(context))

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


async def _entered(context: AbstractAsyncContextManager[T]) -> T:
    return await context.__aenter__()


async def _left(context: AbstractAsyncContextManager[Any]) -> None:
    await context.__aexit__(None, None, None)


@dataclass
class TaskTexts:
    """Tasks with their inputs as the real encoder sees them."""

    encoder: Encoder
    texts: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        self.vectors = {name: self.encoder.encode(list(texts)) for name, texts in self.texts.items()}
        self.profile = fit_profile([TaskExamples(name, rows) for name, rows in self.vectors.items()])


@dataclass(frozen=True)
class World:
    """What a router is to know. ``best``: adapters by task, best first; a task without any goes to the base.

    ``compositions``: measured weighted sets by task, which beat the best single adapter.
    """

    adapters: Sequence[Adapter]
    best: Mapping[str, Sequence[str]]
    backends: Sequence[Backend] = ()
    manifests: Sequence[Manifest] = ()
    serving: Serving = field(default_factory=Serving)
    compositions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    base: str = BASE_ID


class RunningRouter:
    """A real router in front of a snapshot that can be changed."""

    def __init__(self, index: MemoryIndex, tasks: TaskTexts, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._index = index
        self._tasks = tasks
        self._generation = 1

    def publish(self, world: World) -> None:
        """Lets the router know something else."""
        self._generation += 1
        self._index.publish(_snapshot(self._tasks, world, self._generation), [])


@contextmanager
def routing(background: Background, tasks: TaskTexts, world: World) -> Iterator[RunningRouter]:
    """Runs a real router on a free port."""
    index = MemoryIndex()
    index.publish(_snapshot(tasks, world, 1), [])
    settings = Settings.model_validate(
        {"qdrant_url": "http://127.0.0.1:1", "poll_seconds": 0.05, "access": "open"}
    )
    with background.entered(wired(settings, index, tasks.encoder)) as router:
        port = background.run(router.server.start("127.0.0.1", 0))
        try:
            yield RunningRouter(index, tasks, port)
        finally:
            background.run(router.server.stop(0))


def _snapshot(tasks: TaskTexts, world: World, generation: int) -> Snapshot:
    return Snapshot(
        "default", generation, "", tasks.encoder.digest, {POOL_ID: pool_of(tasks, world, POOL_ID)}
    )


def pool_of(tasks: TaskTexts, world: World, name: str) -> Pool:
    """Returns a pool that holds a world."""
    versions = {adapter.adapter_id: adapter.version for adapter in world.adapters}
    made = tuple(
        Task(
            name,
            1,
            "exact_match",
            frozenset(),
            len(tasks.texts[name]),
            represent(rows, tasks.texts[name]).centroid,
            represent(rows, tasks.texts[name]).terms,
            _affinities(world.best.get(name, ()), versions),
            compositions=_compositions(world.compositions.get(name, {}), versions),
        )
        for name, rows in tasks.vectors.items()
    )
    return Pool(
        name,
        world.base,
        (),
        "ROUTE",
        tasks.profile,
        made,
        tuple(world.adapters),
        tuple(world.backends),
        world.serving,
        tuple(world.manifests),
    )


def _affinities(best: Sequence[str], versions: Mapping[str, int]) -> tuple[Affinity, ...]:
    scores = [Affinity(name, versions[name], 0.9 - 0.1 * place, 20, 0.01) for place, name in enumerate(best)]
    return (*scores, Affinity("base", 0, 0.2, 20, 0.01))


def _compositions(weights: Mapping[str, float], versions: Mapping[str, int]) -> tuple[Composition, ...]:
    if not weights:
        return ()
    members = tuple((name, versions[name], weight) for name, weight in weights.items())
    return (Composition("mix-" + "0" * 16, members, 0.99, 20, 0.01, 0.09, 0.01),)


class Gateway:
    """A gateway's process."""

    def __init__(self, port: int, grpc_port: int, pid: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.grpc = f"127.0.0.1:{grpc_port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self._status = Path(f"/proc/{pid}/status")

    def post(self, path: str, body: object) -> httpx.Response:
        """Asks it."""
        return self.http.post(path, json=body)

    def replicas(self) -> list[dict[str, Any]]:
        """Returns what it says of the replicas of all backends."""
        return list(self.http.get("/v1/backends").raise_for_status().json()["replicas"])

    def replica(self, backend: str) -> dict[str, Any]:
        """Returns what it says of a backend's only replica."""
        (found,) = (each for each in self.replicas() if each["backend_id"] == backend)
        return found

    def resident_bytes(self) -> int:
        """Returns how much memory its process takes."""
        lines = self._status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    def metric(self, name: str, **labels: str) -> float:
        """Returns the sum of a counter over all labels but these."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


@contextmanager
def gateway(router: str, log: Path, **settings: Any) -> Iterator[Gateway]:
    """Runs a gateway until the block's end; its log goes to a file."""
    port, grpc_port = free_port(), free_port()
    environment = {
        "LORAUTER_ACCESS": "open",
        "LORAUTER_ROUTER_ADDRESS": router,
        "LORAUTER_HTTP_PORT": str(port),
        "LORAUTER_GRPC_PORT": str(grpc_port),
        "LORAUTER_SNAPSHOT_POLL_SECONDS": "0.05",
        "LORAUTER_LOG_FORMAT": "text",
        "LORAUTER_DRAIN_SECONDS": "0",
        **{name.upper(): str(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "lorauter_gateway.main"]
    spec = ProcessSpec("gateway", command, environment, probe=lambda: http_ready(port))
    with log.open("wb") as output, running(spec, output) as process:
        made = Gateway(port, grpc_port, process.pid)
        try:
            yield made
        finally:
            made.http.close()


@contextmanager
def engine(base: Path, store: Path) -> Iterator[str]:
    """Runs an engine on an adapter store; yields its URL."""
    port = free_port()
    environment = {
        "LORAUTER_MODEL": str(base),
        "LORAUTER_MODEL_ID": BASE_ID,
        "LORAUTER_ADAPTER_STORE": str(store),
        "LORAUTER_DEVICE": "cpu",
        "LORAUTER_HTTP_PORT": str(port),
        "LORAUTER_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-m", "lorauter_engine.main"]
    with running(ProcessSpec("engine", command, environment, probe=lambda: http_ready(port))):
        yield f"http://127.0.0.1:{port}"


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Waits until something holds; fails when it does not come true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def events_of(text: str) -> list[dict[str, Any]]:
    """Returns the events of a stream that has ended."""
    lines = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
