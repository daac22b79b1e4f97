"""Adapters in a store, and servers that load them from there."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorauter.encoder import Encoder
from lorauter.lora.check import read_modules
from lorauter.lora.composites import Composite, CompositeStore
from lorauter.lora.config import AdapterConfig
from lorauter.lora.recipe import Base, make_recipe
from lorauter.lora.servers import Server
from lorauter.lora.store import AdapterStore
from lorauter.lora.write import write_adapter
from tests.integration.gateway_servers.stand import Background, TaskTexts, engine
from tests.protocol_servers.process import Running, running

BASE_ID = "lorauter/demo-base"
TASKS = ("reverse-word", "sort-word", "upper-word", "dash-word")
_TARGETS = ("q_proj", "v_proj")


class Shelf:
    """An adapter store on the demo's base. Adapters have names here; elsewhere they go by their folders'."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base = base
        self.store = AdapterStore(folder / "store")
        self.digests: dict[str, str] = {}
        self._incoming = folder / "incoming"
        self._modules = read_modules(base)

    def put(self, name: str, folder: Path) -> str:
        """Stores a folder; returns the name of its folder in the store."""
        self.digests[name] = self.store.put(folder)
        return self.folder(name)

    def make(
        self, name: str, rank: int = 8, size: float = 0.05, rename: Callable[[str], str] = lambda key: key
    ) -> str:
        """Stores an adapter of random matrices; ``rename`` changes the names of its modules."""
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        matrices = {
            rename(module): (
                draw.normal(size=(rank, width)).astype(np.float32) * size,
                draw.normal(size=(out, rank)).astype(np.float32) * size,
            )
            for module, (width, out) in self._modules.items()
            if module.endswith(_TARGETS)
        }
        write_adapter(
            self._incoming / name, AdapterConfig(BASE_ID, rank, float(rank), False, _TARGETS), matrices
        )
        return self.put(name, self._incoming / name)

    def mix(self, weights: Mapping[str, float], server: Server) -> Composite:
        """Stores a weighted set as one adapter for a kind of server."""
        members = [(self.digests[name], weight) for name, weight in weights.items()]
        recipe = make_recipe(Base(BASE_ID, "sha256:" + "0" * 64, self._modules), members, server)
        return CompositeStore(self.store).ensure(recipe)

    def rank(self, name: str) -> int:
        """Returns an adapter's rank."""
        return int(json.loads((Path(self.path(name)) / "adapter_config.json").read_text())["r"])

    def folder(self, name: str) -> str:
        """Returns the name of an adapter's folder in the store, which servers know it by."""
        return self.digests[name].removeprefix("sha256:")

    def path(self, name: str) -> str:
        """Returns an adapter's folder."""
        return str(self.store.path(self.digests[name]))


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    """A loop for routers."""
    loop = Background()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def tasks(encoder: Encoder, demo_pool: Path) -> TaskTexts:
    """Four tasks of the demo's."""
    texts = {
        name: [json.loads(line)["input"] for line in _lines(demo_pool, name, "validation")] for name in TASKS
    }
    return TaskTexts(encoder, texts)


@pytest.fixture(scope="session")
def queries(demo_pool: Path) -> dict[str, list[str]]:
    """Queries by task that the tasks do not have."""
    return {name: [json.loads(line)["input"] for line in _lines(demo_pool, name, "test")] for name in TASKS}


def _lines(pool: Path, task: str, file: str) -> list[str]:
    return (pool / "tasks" / task / f"{file}.jsonl").read_text().splitlines()


@pytest.fixture(scope="session")
def demo_shelf(demo_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A store with the demo's adapters for the tasks, named as they are there."""
    shelf = Shelf(demo_pool / "base", tmp_path_factory.mktemp("demo-shelf"))
    for task in TASKS:
        shelf.put(f"{task}-a", demo_pool / "adapters" / f"{task}-a")
    return shelf


@pytest.fixture(scope="session")
def engine_url(demo_shelf: Shelf) -> Iterator[str]:
    """An engine on that store."""
    with engine(demo_shelf.base, demo_shelf.store.root) as url:
        yield url


@pytest.fixture
def shelf(demo_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """An empty store, which need not outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return Shelf(demo_pool / "base", tmp_path)


@pytest.fixture
def serve(demo_pool: Path) -> Iterator[Callable[..., Running]]:
    """Starts protocol servers on the demo's base: ``serve("vllm", max_loras=4)``."""
    with ExitStack() as stack:

        def start(kind: str, **options: Any) -> Running:
            return stack.enter_context(running(kind, model=demo_pool / "base", **options))

        yield start
