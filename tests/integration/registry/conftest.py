"""The registry's service on an empty database, called without a transport."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lorauter.access import acting, open_caller
from lorauter.errors import Unavailable
from lorauter.lora.check import Limits
from lorauter.lora.store import AdapterStore
from lorauter.store import create_engine
from lorauter_registry.adapters.folders import RootedFolders
from lorauter_registry.domain.adapter_requests import RegisterAdapter
from lorauter_registry.domain.examples import ExampleSet
from lorauter_registry.domain.requests import CreatePool, CreateTask, PutValidationSet, RegisterBackend
from lorauter_registry.service import Registry
from lorauter_registry.service.base import Context


class Heard:
    """Wake-ups that were sent, in order."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    def wake(self, topics: Collection[str]) -> None:
        self.topics.extend(topics)


class NoHub:
    """A hub that is away."""

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        raise Unavailable("HUB_UNAVAILABLE", f"{name}: away")


@pytest.fixture
def registry(postgres_url: str, tmp_path: Path, tiny_pool: Any) -> Iterator[Registry]:
    """The service with a pool ``p`` and a task ``t``."""
    engine = create_engine(postgres_url, pool_size=20)
    context = Context(
        engine=engine,
        wakeups=Heard(),
        folders=RootedFolders([tiny_pool.root]),
        hub=NoHub(),
        store=AdapterStore(tmp_path / "store"),
        limits=Limits(),
        max_pins=timedelta(days=30),
    )
    registry = Registry(context)
    base = {"id": "p", "base_model": tiny_pool.base_model, "base_path": str(tiny_pool.base())}
    with acting(open_caller("default")):
        registry.create_pool(CreatePool.model_validate(base))
        registry.create_task(CreateTask.model_validate({"id": "t", "pool": "p", "metric": "exact_match"}))
        yield registry
    engine.dispose()


@pytest.fixture
def ready(registry: Registry, tiny_pool: Any) -> Registry:
    """The service whose pool can be matched: ``t`` has an example; there are adapter ``a``, backend ``e``."""
    path = str(tiny_pool.adapter("a"))
    registry.register_adapter(RegisterAdapter(id="a", pool="p", path=path))
    examples = ExampleSet(1_000)
    examples.add("question", "answer")
    registry.put_validation_set(PutValidationSet(task_id="t"), examples)
    engine = {"id": "e", "pool": "p", "kind": "ENGINE", "url": "http://localhost:1"}
    registry.register_backend(RegisterBackend.model_validate(engine))
    return registry
