"""A noisy pool at the registry: sound adapters come in, broken ones are refused for what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lorauter.errors import LorauterError
from lorauter_registry.domain.adapter_requests import RegisterAdapter
from lorauter_registry.domain.requests import CreatePool
from lorauter_registry.service import Registry
from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.noisy.broken import BROKEN
from lorauter_suite.demo.noisy.files import write_lora
from lorauter_suite.demo.noisy.recipe import DERIVED, NoisyRecipe
from lorauter_suite.demo.noisy.weights import Workshop
from lorauter_suite.demo.recipe import BASE_ID
from lorauter_suite.demo.verify import POOL


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return Workshop(NoisyRecipe(count=36 + len(DERIVED), trainings=0), load_pool(POOL).stack, {})


@pytest.fixture
def noisy(registry: Registry, tiny_pool: Any) -> Registry:
    """The registry with a pool on the demo's base."""
    base = tiny_pool.root / "demo-base"
    shutil.copytree(POOL / "base", base, dirs_exist_ok=True)
    registry.create_pool(CreatePool(id="noisy", base_model=BASE_ID, base_path=str(base)))
    return registry


def registered(registry: Registry, folder: Path) -> str:
    """Registers an adapter; returns its state, or the reason of the refusal."""
    request = RegisterAdapter(id=folder.name, pool="noisy", path=str(folder))
    try:
        return str(registry.register_adapter(request).latest.state)
    except LorauterError as error:
        return error.reason


def test_every_kind_of_noisy_adapter_is_registered(noisy, workshop, tiny_pool):
    for adapter in workshop.adapters[-len(DERIVED) :]:
        write_lora(tiny_pool.root / adapter.id, workshop.make(adapter))
        assert registered(noisy, tiny_pool.root / adapter.id) == "ACTIVE"


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_broken_adapter_is_refused_for_its_reason_unless_only_matching_can_tell(
    noisy, workshop, tiny_pool, broken
):
    folder = tiny_pool.root / f"broken-{broken.name}"
    broken.write(workshop.make(workshop.adapters[0]), folder)
    expected = broken.reason if broken.stage == "registration" else "ACTIVE"
    assert registered(noisy, folder) == expected
