"""A registry written directly, and the worker's parts over real ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from sqlalchemy import Engine, text
from sqlmodel import Session, col, select

from lorauter.encoder import Encoder
from lorauter.index import QdrantIndex
from lorauter.lora.store import AdapterStore
from lorauter.prompts import GenerationSpec, PromptSpec, prompt_digest
from lorauter.routing.model import Snapshot
from lorauter.store import create_engine, tables, write
from lorauter_worker.config import Settings
from lorauter_worker.service.indexing import Indexer
from lorauter_worker.service.projection import Projector

POOL = "main"


class Registry:
    """A tenant's registry, written directly: every method is one accepted change."""

    def __init__(self, engine: Engine, tenant: str) -> None:
        self.engine = engine
        self.tenant = tenant

    def add_pool(self, **fields) -> int:
        with write(self.engine, self.tenant) as tx:
            tx.session.add(
                tables.Pool(
                    tenant=self.tenant, id=POOL, base_model="test/base", generation=tx.generation, **fields
                )
            )
            tx.owe("index", POOL)
        return tx.generation

    def add_backend(self, url: str, state: str = "ACTIVE", kind: str = "ENGINE", **fields) -> int:
        with write(self.engine, self.tenant) as tx:
            tx.session.add(
                tables.Backend(
                    tenant=self.tenant,
                    id=kind.lower(),
                    pool=POOL,
                    kind=kind,
                    url=url,
                    state=state,
                    generation=tx.generation,
                    **fields,
                )
            )
            tx.owe("index", POOL)
        return tx.generation

    def put_task(self, task_id: str, examples: Sequence[tuple[str, str]], **fields) -> int:
        """Creates a task, or replaces its validation set."""
        prompt = PromptSpec.from_json(fields.get("prompt", {}))
        generation_settings = GenerationSpec.from_json(fields.get("generation_settings", {}))
        with write(self.engine, self.tenant) as tx:
            task = tx.session.get(tables.Task, (self.tenant, task_id))
            if task is None:
                task = tables.Task(
                    tenant=self.tenant,
                    id=task_id,
                    pool=POOL,
                    metric="exact_match",
                    prompt=prompt.to_json(),
                    generation_settings=generation_settings.to_json(),
                    generation=tx.generation,
                )
            task.version += 1
            task.state = "REGISTERED"
            task.example_count = len(examples)
            task.generation = tx.generation
            tx.session.add(task)
            tx.session.flush()
            tx.session.add(
                tables.TaskVersion(
                    tenant=self.tenant,
                    task_id=task_id,
                    version=task.version,
                    metric=task.metric,
                    prompt_digest=prompt_digest(prompt, generation_settings),
                    examples_version=task.version,
                    example_count=len(examples),
                )
            )
            for position, (question, target) in enumerate(examples):
                tx.session.add(
                    tables.ValidationExample(
                        tenant=self.tenant,
                        task_id=task_id,
                        version=task.version,
                        position=position,
                        input=question,
                        target=target,
                    )
                )
            tx.owe("index", POOL)
        return tx.generation

    def delete_task(self, task_id: str) -> int:
        with write(self.engine, self.tenant) as tx:
            tx.session.delete(tx.session.get(tables.Task, (self.tenant, task_id)))
            tx.owe("index", POOL)
        return tx.generation

    def add_version(self, adapter_id: str, digest: str, state: str = "ACTIVE", **fields) -> int:
        """Adds a version to an adapter, which it creates."""
        with write(self.engine, self.tenant) as tx:
            adapter = tx.session.get(tables.Adapter, (self.tenant, adapter_id))
            if adapter is None:
                adapter = tables.Adapter(
                    tenant=self.tenant, id=adapter_id, pool=POOL, generation=tx.generation
                )
            adapter.latest_version += 1
            tx.session.add(adapter)
            tx.session.flush()
            tx.session.add(
                tables.AdapterVersion(
                    tenant=self.tenant,
                    adapter_id=adapter_id,
                    version=adapter.latest_version,
                    digest=digest,
                    source="path:/test",
                    base_model="test/base",
                    rank=8,
                    alpha=16.0,
                    size_bytes=1,
                    state=state,
                    **fields,
                )
            )
            tx.owe("index", POOL)
        return tx.generation

    def measure(self, task_id: str, adapter_id: str, version: int, score: float, **fields) -> int:
        with write(self.engine, self.tenant) as tx:
            task = tx.session.get(tables.Task, (self.tenant, task_id))
            held = tx.session.get(tables.TaskVersion, (self.tenant, task_id, task.version))
            tx.session.merge(
                tables.Affinity(
                    tenant=self.tenant,
                    task_id=task_id,
                    task_version=task.version,
                    adapter_id=adapter_id,
                    adapter_version=version,
                    metric=task.metric,
                    prompt_digest=held.prompt_digest,
                    score=score,
                    count=10,
                    standard_error=0.1,
                    **{"shrunk_score": score, **fields},
                )
            )
            tx.owe("index", POOL)
        return tx.generation

    def touch(self) -> int:
        """A change that changes nothing but the generation."""
        with write(self.engine, self.tenant) as tx:
            tx.owe("index", POOL)
        return tx.generation

    def execute(self, statement: str, **values) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def scalar(self, statement: str, **values):
        with self.engine.connect() as connection:
            return connection.execute(text(statement), {"tenant": self.tenant, **values}).scalar()

    def task_state(self, task_id: str) -> str | None:
        return self.scalar("SELECT state FROM task WHERE tenant = :tenant AND id = :id", id=task_id)

    def outbox(self) -> list[tables.Outbox]:
        with Session(self.engine) as session:
            return list(session.exec(select(tables.Outbox).where(tables.Outbox.tenant == self.tenant)))

    def operations(self) -> list[tables.Operation]:
        with Session(self.engine) as session:
            chosen = select(tables.Operation).where(tables.Operation.tenant == self.tenant)
            return list(session.exec(chosen.order_by(col(tables.Operation.create_time))))

    @staticmethod
    def questions(topic: str, count: int = 4) -> list[tuple[str, str]]:
        """Examples of a topic."""
        return [(f"{topic} question number {n}", f"{topic} answer {n}") for n in range(count)]

    @staticmethod
    def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Waits until the condition holds; fails when it does not in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"did not hold within {seconds:g} s"
            time.sleep(0.02)


class RecordedWakeups:
    """Wake-ups that were sent, for tests without a broker."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def wake(self, name: str) -> None:
        self.names.append(name)


class CountingEncoder:
    """The real encoder, counting the texts that it encodes."""

    def __init__(self, inner: Encoder) -> None:
        self.inner = inner
        self.digest = inner.digest
        self.dimension = inner.dimension
        self.texts = 0

    def encode(self, texts: Sequence[str]):
        self.texts += len(texts)
        return self.inner.encode(texts)


@dataclass
class IndexWorker:
    """An indexer with its parts in reach, and a reader of what it publishes."""

    indexer: Indexer
    index: QdrantIndex
    encoder: CountingEncoder
    wakeups: RecordedWakeups
    tenant: str

    def snapshot(self) -> Snapshot:
        """What a router would see now."""
        return self.index.read(self.tenant)

    def pool(self):
        return self.snapshot().pools[POOL]


@dataclass(frozen=True)
class Process:
    """A process of a service, which serves HTTP."""

    process: subprocess.Popen
    http_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


@contextmanager
def running(module: str, log: Path, **environment: str) -> Iterator[Process]:
    """Runs a service until the block ends; ready when it says so in JSON."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Process(process, json.loads(line)["http_port"])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass(frozen=True)
class DemoEngine:
    """A running engine with the demo's base, and the store of its adapters."""

    process: Process
    store: AdapterStore
    pool: Path
    made: Path

    @property
    def url(self) -> str:
        return self.process.url

    def scored(self) -> float:
        """How many evaluations it has scored."""
        return self.process.metric('lorauter_engine_batch_rows_sum{kind="score"}')

    def adapter(self, name: str) -> str:
        """Stores one of the demo's adapters; returns its digest."""
        return self.store.put(self.pool / "adapters" / name)

    def scaled(self, name: str, factor: float) -> str:
        """Stores one of the demo's adapters with its B times a factor; returns its digest."""
        folder = self.made / f"{name}-{factor:g}"
        shutil.copytree(self.pool / "adapters" / name, folder, dirs_exist_ok=True)
        weights = load_file(folder / "adapter_model.safetensors")
        scaled = {
            key: value.astype("float32") * factor if "lora_B" in key else value
            for key, value in weights.items()
        }
        save_file(scaled, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return self.store.put(folder)

    def examples(self, task: str, count: int) -> list[tuple[str, str]]:
        """The first examples of one of the demo's tasks."""
        lines = (self.pool / "tasks" / task / "validation.jsonl").read_text().splitlines()[:count]
        return [(row["input"], row["target"]) for row in map(json.loads, lines)]


@pytest.fixture(scope="session")
def demo_engine(tmp_path_factory, demo_pool) -> Iterator[DemoEngine]:
    folder = tmp_path_factory.mktemp("engine")
    environment = {
        "LORAUTER_MODEL": str(demo_pool / "base"),
        "LORAUTER_MODEL_ID": "lorauter/demo-base",
        "LORAUTER_ADAPTER_STORE": str(folder / "store"),
    }
    store = AdapterStore(folder / "store")
    with running("lorauter_engine.main", folder / "log", **environment) as process:
        yield DemoEngine(process, store, demo_pool, folder / "made")


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "worker.log"


@pytest.fixture
def run_worker(settings, log):
    """Runs a worker for a block: ``run_worker(queues, LORAUTER_…=…)``."""

    def run(queues: str, **environment: str):
        defaults = {
            "DATABASE_URL": str(settings.database_url),
            "REDIS_URL": str(settings.redis_url),
            "QDRANT_URL": str(settings.qdrant_url),
            "LORAUTER_QUEUES": queues,
            "LORAUTER_SWEEP_SECONDS": "0.3",
            "LORAUTER_LEASE_SECONDS": "2",
            "LORAUTER_HEARTBEAT_SECONDS": "0.5",
            "LORAUTER_DRAIN_SECONDS": "1",
        }
        return running("lorauter_worker.main", log, **{**defaults, **environment})

    return run


@pytest.fixture
def run_router(settings, registry, tmp_path):
    """Runs a router of the test's tenant for a block: ``run_router(LORAUTER_…=…)``."""

    def run(**environment: str):
        defaults = {
            "QDRANT_URL": str(settings.qdrant_url),
            "LORAUTER_ACCESS": "open",
            "LORAUTER_TENANT": registry.tenant,
            "LORAUTER_TENANTS": registry.tenant,
        }
        return running("lorauter_router.main", tmp_path / "router.log", **{**defaults, **environment})

    return run


@pytest.fixture
def settings(postgres_url, redis_url, qdrant_url) -> Settings:
    return Settings(
        database_url=postgres_url,
        redis_url=redis_url,
        qdrant_url=qdrant_url,
        queues="index,matching",
    )


@pytest.fixture
def registry(postgres_url) -> Iterator[Registry]:
    """An empty registry of a tenant of the test's own."""
    engine = create_engine(postgres_url)
    yield Registry(engine, f"t{uuid.uuid4().hex[:12]}")
    engine.dispose()


@pytest.fixture
def make_index_worker(registry, encoder, settings, qdrant_url) -> Callable[..., IndexWorker]:
    """Makes index workers with memories of their own, as after a restart."""

    def make(owner: str = "test", encoder: Encoder = encoder) -> IndexWorker:
        index, wakeups = QdrantIndex(qdrant_url), RecordedWakeups()
        counting = CountingEncoder(encoder)
        projector = Projector(registry.engine, counting, settings.representation_examples)
        indexer = Indexer(registry.engine, index, projector, wakeups, settings, owner)
        return IndexWorker(indexer, index, counting, wakeups, registry.tenant)

    return make


@pytest.fixture
def index_worker(make_index_worker) -> IndexWorker:
    return make_index_worker()
