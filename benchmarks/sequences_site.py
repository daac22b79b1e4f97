"""A registry, workers and an index on a real PostgreSQL, in one process whose caller lets time pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from sqlalchemy import Engine, text
from sqlmodel import SQLModel

from benchmarks.faults_changes import Files
from benchmarks.sequences_process import Process
from lorauter import failpoints
from lorauter.access import calling, open_caller
from lorauter.errors import Unavailable
from lorauter.index import QdrantIndex
from lorauter.lora.check import Limits
from lorauter.lora.store import AdapterStore
from lorauter.routing.representation import unit_rows
from lorauter_registry.adapters.folders import RootedFolders
from lorauter_registry.service import Registry
from lorauter_registry.service.base import Context
from lorauter_worker import telemetry
from lorauter_worker.config import Settings
from lorauter_worker.service.indexing import Indexer
from lorauter_worker.service.projection import Projector
from lorauter_worker.service.sweep import Sweep

TENANT = "default"
WIDTH = 8
WORKERS = 3
LEASE_SECONDS = 600.0
"""No lease ends by itself while a sequence runs: only pass_time() ends it."""

_PASS = text(
    "UPDATE outbox SET available_at = available_at - make_interval(secs => :seconds), "
    "lease_until = lease_until - make_interval(secs => :seconds)"
)
_EMPTY = "; ".join(
    f"DELETE FROM {table.name}"  # noqa: S608 - names of our own tables
    for table in reversed(SQLModel.metadata.sorted_tables)
)
_GENERATION = text("SELECT value FROM generation WHERE tenant = :tenant")
_ADDRESS = "http://127.0.0.1:9"
"""Of servers that are not called: what would call them is given its parts here."""


class HashEncoder:
    """Unit vectors of eight numbers from a text's digest: all that matters is that they stay the same."""

    digest = "sha256:" + sha256(b"benchmarks.sequences").hexdigest()
    dimension = WIDTH

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns (len(texts), 8) float32."""
        seeds = [int.from_bytes(sha256(each.encode()).digest()[:8], "big") for each in texts]
        drawn = [np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds]
        return unit_rows(np.stack(drawn).astype(np.float32))


class Queue:
    """The broker: names of wake-ups that were sent and not taken."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def wake(self, topics: Collection[str] | str) -> None:
        """Takes a registry's wake-ups, for several topics, or a worker's, for one; nobody matches here."""
        failpoints.reach("wake-up")
        named = [topics] if isinstance(topics, str) else topics
        self.names += [name for name in named if name != "matching"]

    def waiting(self, name: str) -> int:
        """Returns how many wake-ups of a name wait."""
        return self.names.count(name)


class NoHub:
    """A hub that is away."""

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """Raises Unavailable (HUB_UNAVAILABLE)."""
        raise Unavailable("HUB_UNAVAILABLE", f"{name}: away")


class Worker(Process):
    """A worker's process for the index, with a memory of its own."""

    def __init__(self, site: Site, owner: str) -> None:
        super().__init__(site.guarded(site.index_client))
        projector = Projector(site.engine, site.encoder, site.settings.representation_examples)
        index = QdrantIndex(self.client)  # type: ignore[arg-type]
        self.indexer = Indexer(site.engine, index, projector, site.queue, site.settings, owner)


class Site:
    """All parts, over an empty database. ``guarded`` may take a guard off the index, for a control."""

    def __init__(
        self, engine: Engine, folder: Path, guarded: Callable[[Any], Any] = lambda client: client
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.guarded = guarded
        self.encoder = HashEncoder()
        self.files = Files(folder / "incoming")
        self.settings = Settings(
            database_url=engine.url.render_as_string(hide_password=False).replace("+psycopg", ""),
            redis_url="redis://127.0.0.1:9/0",
            qdrant_url=_ADDRESS,
            queues="index",
            lease_seconds=LEASE_SECONDS,
            heartbeat_seconds=LEASE_SECONDS / 3,
        )
        self.index_client, self.fresh_client = QdrantClient(":memory:"), QdrantClient(":memory:")
        self.begin()

    def begin(self) -> None:
        """Starts over with an empty registry and an empty index."""
        calling(open_caller(TENANT))
        self._empty()
        empty(self.index_client)
        self.queue = Queue()
        self.reader = QdrantIndex(self.index_client)
        self.registry = self._registry()
        self._made = 0
        self.workers = [self.start_worker() for _ in range(WORKERS)]

    def end(self) -> None:
        """Lets all that is halted die."""
        for worker in self.workers:
            if worker.is_halted:
                worker.resume(dies=True)

    def start_worker(self) -> Worker:
        """Returns a worker with an empty memory, as one that was started just now."""
        self._made += 1
        return Worker(self, f"worker-{self._made}")

    def replace(self, dead: Worker) -> None:
        """Starts a worker in place of one that died."""
        self.workers[self.workers.index(dead)] = self.start_worker()

    def adapter(self, name: str) -> Path:
        """Returns the folder of an adapter's files, which it writes where they are not there."""
        folder = self.files.folder / name
        return folder if folder.exists() else self.files.adapter(name)

    def repairs(self) -> tuple[float, float]:
        """Returns how often an index of this process was repaired, and how often built anew."""
        return telemetry.REPAIRS._value.get(), telemetry.REBUILDS._value.get()

    def sweep(self) -> None:
        """Looks once for work that no wake-up is there for, as every worker does all the time."""
        Sweep(self.engine, self.reader, self.queue, self.queue.waiting, self.settings).once()

    def pass_time(self) -> None:
        """Lets every lease end and every pause after a failure."""
        with self.engine.begin() as connection:
            connection.execute(_PASS, {"seconds": LEASE_SECONDS + 60})

    def generation(self) -> int:
        """Returns the newest generation, 0 before the first change."""
        with self.engine.connect() as connection:
            return connection.execute(_GENERATION, {"tenant": TENANT}).scalar() or 0

    def _registry(self) -> Registry:
        return Registry(
            Context(
                engine=self.engine,
                wakeups=self.queue,
                folders=RootedFolders([self.files.folder]),
                hub=NoHub(),
                store=AdapterStore(self.folder / "store"),
                limits=Limits(),
                max_pins=timedelta(days=30),
            )
        )

    def _empty(self) -> None:
        with self.engine.begin() as connection:
            connection.exec_driver_sql(_EMPTY)


def empty(client: QdrantClient) -> None:
    """Lets an index come back with nothing in it."""
    for collection in client.get_collections().collections:
        client.delete_collection(collection.name)
