"""Writes a whole noisy pool as folders, with a manifest that says the truth about each adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from lorauter_suite.demo.export import write_json
from lorauter_suite.demo.noisy.broken import BROKEN
from lorauter_suite.demo.noisy.files import write_lora
from lorauter_suite.demo.noisy.recipe import NoisyAdapter, NoisyRecipe, Source, all_sources
from lorauter_suite.demo.noisy.weights import Workshop

MANIFEST = "noisy.json"


def write_pool(out: Path, workshop: Workshop, advance: Callable[[], None]) -> None:
    """Writes every adapter of the workshop's recipe, and one of each broken kind, under ``out``/adapters.

    ``out``/noisy.json is the manifest: the recipe, and of each adapter its id, kind, task, parents and
    amount; of a broken one where and why it is turned away.
    """
    adapters = workshop.adapters
    for adapter in adapters:
        write_lora(out / "adapters" / adapter.id, workshop.make(adapter))
        advance()
    sound = workshop.make(adapters[0])
    for broken in BROKEN:
        broken.write(sound, out / "adapters" / f"broken-{broken.name}")
        advance()
    write_json(out / MANIFEST, manifest(workshop.recipe, adapters))


def manifest(recipe: NoisyRecipe, adapters: Sequence[NoisyAdapter]) -> dict[str, object]:
    """The truth about a pool, as JSON has it."""
    sources = {source.id: source for source in all_sources(recipe)}
    return {
        "digest": recipe.digest(),
        "recipe": asdict(recipe),
        "adapters": [_described(adapter, sources) for adapter in adapters],
        "broken": [
            {"id": f"broken-{broken.name}", "stage": broken.stage, "reason": broken.reason}
            for broken in BROKEN
        ],
    }


def _described(adapter: NoisyAdapter, sources: dict[str, Source]) -> dict[str, object]:
    parents = [asdict(sources[name]) for name in adapter.parents]
    return {**asdict(adapter), "parents": parents}
