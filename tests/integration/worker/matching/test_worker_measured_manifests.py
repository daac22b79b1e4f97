"""From adapters measured on the real engine to a composite that PEFT loads: what a manifest is for."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lorauter.lora.check import read_modules
from lorauter.lora.composites import CompositeStore
from lorauter.store import manifest_rows
from lorauter_worker.adapters.evaluators import make_evaluator
from lorauter_worker.service.manifests import Manifests

BLENDS = {
    "ahead": {"shift-word-a": 1.0, "sort-word-a": 0.5},
    "behind": {"shift-word-a": 1.0, "sort-word-a": -0.65},
    "good": {"reverse-word-a": 1.0},
}
"""Together the first two are what shifts words, better than either."""


@pytest.fixture
def demo(registry, demo_engine, blended, tmp_path):
    modules = {name: list(shape) for name, shape in read_modules(demo_engine.pool / "base").items()}
    serving = {"manifest_memory_bytes": 10 * 1024**2, "manifest_policy": "AUTO"}
    registry.add_pool(modules=modules, serving=serving)
    registry.add_backend(demo_engine.url)
    for task in ("shift-word", "reverse-word"):
        registry.put_task(task, demo_engine.examples(task, 30))
    for name, weights in BLENDS.items():
        registry.add_version(name, demo_engine.store.put(blended(tmp_path / name, weights)))
    registry.execute("UPDATE task SET state = 'EMBEDDED'")
    return registry


def test_a_measured_composition_is_published_written_announced_and_loads(
    demo, matchings, demo_engine, index_worker, settings
) -> None:
    matchings.start()
    matchings.matcher(make_evaluator).drain()
    composites = CompositeStore(demo_engine.store)
    layouts = manifest_rows.Layouts(demo_engine.store)
    manifests = Manifests(demo.engine, composites, layouts, index_worker.wakeups, settings)
    manifests.once()
    manifests.once()
    index_worker.indexer.drain()
    (announced,) = index_worker.pool().manifests
    digests = {name: demo_digest(demo, name) for name in BLENDS}
    members = {frozenset(entry.members): entry for entry in announced.entries}
    mixed = members[frozenset({(digests["ahead"], 0.5), (digests["behind"], 0.5)})]
    assert frozenset({(digests["good"], 1.0)}) in members
    assert len(members) == 2, "neither half is of use beside the whole"
    composite = composites.get(mixed.name)
    assert (composite.rank, composite.name) == (mixed.rank, mixed.name)

    base: Any = AutoModelForCausalLM.from_pretrained(demo_engine.pool / "base").eval()
    ids = torch.arange(3, 27).reshape(2, 12)
    with torch.no_grad():
        bare = base(input_ids=ids).logits.clone()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)
        whole = PeftModel.from_pretrained(base, composite.folder)(input_ids=ids).logits
    assert float((whole - bare).abs().max()) > 0.1


def demo_digest(demo, name: str) -> str:
    return demo.scalar(
        "SELECT digest FROM adapter_version WHERE tenant = :tenant AND adapter_id = :id", id=name
    )
