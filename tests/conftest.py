"""Real parts for the tests: PostgreSQL, Valkey and the index process, started once for a session."""

# ruff: noqa: E402  -- numpy and torch read their number of threads when they are imported
from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import psycopg
import pytest
import redis
from psycopg import sql
from safetensors.numpy import save_file

import lorauter_suite
from lorauter.encoder import Encoder, load_encoder
from lorauter.lora.check import read_modules
from lorauter.lora.composite import concatenated, needed_rank
from lorauter.lora.config import AdapterConfig
from lorauter.lora.weights import read_weights
from lorauter.lora.write import write_adapter
from lorauter.store.migrate import migrate
from lorauter_suite.embedded.index import index_process, index_url
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.postgres import EmbeddedPostgres
from lorauter_suite.embedded.process import running
from lorauter_suite.embedded.valkey import valkey_process, valkey_url

_UNSAFE_BUT_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_TEMPLATE = "template_migrated"
_REDIS_DATABASES = 16
_numbers = itertools.count()


@dataclass(frozen=True)
class PostgresServer:
    """The session's PostgreSQL: ``url(database)`` addresses one of its databases."""

    url: Callable[[str], str]

    def create(self, database: str, template: str = "template1") -> str:
        """Creates a database and returns its url."""
        self._administer("CREATE DATABASE {} TEMPLATE {}", database, template)
        return self.url(database)

    def drop(self, database: str) -> None:
        """Drops a database, whoever is still connected."""
        self._administer("DROP DATABASE IF EXISTS {} WITH (FORCE)", database)

    def _administer(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Lends a database of its own."""
        name = f"test_{next(_numbers)}"
        try:
            yield self.create(name, template)
        finally:
            self.drop(name)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """An empty PostgreSQL of the session's own."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), free_port(), _UNSAFE_BUT_FAST)
    with running(server.process()):
        yield PostgresServer(server.url)


@pytest.fixture(scope="session")
def _migrated(postgres_server: PostgresServer) -> str:
    migrate(postgres_server.create(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, _migrated: str) -> Iterator[str]:
    """The url of a migrated, otherwise empty database of the test's own."""
    with postgres_server.database(_migrated) as url:
        yield url


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The url of a database without any table, of the test's own."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def _valkey_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    with running(valkey_process(tmp_path_factory.mktemp("valkey"), port)):
        yield port


@pytest.fixture
def redis_url(_valkey_port: int) -> Iterator[str]:
    """The url of an empty database of the session's Valkey; another test uses another number."""
    url = valkey_url(_valkey_port, next(_numbers) % _REDIS_DATABASES)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url


@pytest.fixture(scope="session")
def qdrant_url() -> Iterator[str]:
    """The url of the session's index process; its collections are shared by all tests."""
    port = free_port()
    with running(index_process(port)):
        yield index_url(port)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The MiniLM encoder on one thread."""
    return load_encoder("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def demo_pool() -> Path:
    """The folder of the shipped demo pool."""
    return Path(lorauter_suite.__file__).parent / "demo" / "pool"


class TinyPool:
    """The files of a base model with one linear layer, 8 wide, and of adapters made for it."""

    base_model = "tiny/base"
    module = "model.layers.0.self_attn.q_proj"

    def __init__(self, root: Path) -> None:
        self.root = root

    def base(self) -> Path:
        """Writes the base model; returns its folder."""
        folder = self.root / "base"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (folder / "tokenizer.json").write_text("{}")
        save_file({f"{self.module}.weight": np.zeros((8, 8), np.float32)}, folder / "model.safetensors")
        return folder

    def adapter(self, name: str, base: str = base_model, width: int = 8, seed: int = 0) -> Path:
        """Writes an adapter for that layer, or for one that takes ``width``; returns its folder."""
        draw = np.random.default_rng(seed)
        a, b = draw.normal(size=(2, width)), draw.normal(size=(8, 2))
        config = AdapterConfig(base, 2, 4.0, False, ("q_proj",))
        matrices = {self.module: (a.astype(np.float32), b.astype(np.float32))}
        write_adapter(self.root / name, config, matrices)
        return self.root / name


@pytest.fixture(scope="session")
def tiny_pools() -> type[TinyPool]:
    """Makes the files of a pool that needs no training under a folder."""
    return TinyPool


@pytest.fixture
def tiny_pool(tiny_pools: type[TinyPool], tmp_path: Path) -> TinyPool:
    """The files of a pool that needs no training, under a folder of the test's own."""
    return tiny_pools(tmp_path / "incoming")


@pytest.fixture(scope="session")
def blended(demo_pool: Path) -> Callable[[Path, dict[str, float]], Path]:
    """Writes a weighted sum of the demo's adapters as one adapter: ``blended(folder, {name: weight})``."""

    def write(folder: Path, weights: dict[str, float]) -> Path:
        adapters = [(weight, read_weights(demo_pool / "adapters" / name)) for name, weight in weights.items()]
        rank = needed_rank(adapters)
        modules = concatenated(adapters, read_modules(demo_pool / "base"), rank)
        layers = tuple(sorted({module.rpartition(".")[2] for module in modules}))
        config = AdapterConfig("lorauter/demo-base", rank, float(rank), False, layers)
        write_adapter(folder, config, {module: (lora.a, lora.b) for module, lora in modules.items()})
        return folder

    return write
