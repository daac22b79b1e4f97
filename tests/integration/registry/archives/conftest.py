"""One registry with a row in every table for all tests of archives, and empty ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lorauter.access import acting, open_caller
from lorauter.lora.check import Limits
from lorauter.lora.store import AdapterStore
from lorauter.store import create_engine
from lorauter_registry.adapters.folders import RootedFolders
from lorauter_registry.adapters.hub import HuggingFaceHub
from lorauter_registry.service import Registry
from lorauter_registry.service.base import Context
from tests.integration.registry.archives.site import TENANT, Heard, Site, fill

_numbers = itertools.count()


@pytest.fixture(scope="session")
def full(
    postgres_server: Any, _migrated: str, tmp_path_factory: pytest.TempPathFactory, tiny_pools: Any
) -> Iterator[Site]:
    """A registry with a row in every table that is exported, and adapters in several states."""
    folder = tmp_path_factory.mktemp("archives")
    files = tiny_pools(folder / "incoming")
    with postgres_server.database(_migrated) as url:
        engine = create_engine(url)
        context = Context(
            engine=engine,
            wakeups=Heard(),
            folders=RootedFolders([files.root]),
            hub=HuggingFaceHub(1, 1.0),
            store=AdapterStore(folder / "store"),
            limits=Limits(),
            max_pins=timedelta(days=30),
        )
        site = Site(Registry(context), TENANT)
        with acting(open_caller(TENANT)):
            fill(site.registry, files)
        yield site
        engine.dispose()


@pytest.fixture(scope="session")
def archive(full: Site) -> bytes:
    """What is exported of it."""
    return full.export()


@pytest.fixture
def fresh(full: Site, tmp_path: Path) -> Site:
    """The registry of a tenant of the test's own, with a store of its own, both empty."""
    site = full.with_context(store=AdapterStore(tmp_path / "fresh"), wakeups=Heard())
    return replace(site, tenant=f"t{next(_numbers)}")
