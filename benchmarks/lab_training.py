"""Trains a seed's adapters on the shipped base, or reads them back from the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.lab_recipe import LabRecipe
from lorauter_suite.demo.adapters import train_adapters
from lorauter_suite.demo.check import Loaded
from lorauter_suite.demo.export import round_stack
from lorauter_suite.demo.stack import LoraStack, Site


def trained_stack(
    recipe: LabRecipe, seed: int, loaded: Loaded, cache: Path, advance: Callable[[], None]
) -> LoraStack:
    """Returns the adapters of ``seed``, rounded as their files would be; calls ``advance`` after each step.

    A minute's work becomes a file of ``cache``, named by what it holds.
    """
    path = cache / f"adapters-{recipe.training_digest(seed)}.safetensors"
    if not path.exists():
        stack = train_adapters(loaded.model, loaded.codec, recipe.adapters, seed, lambda *_: advance())
        round_stack(stack)
        _write(stack, path)
    tensors = load_file(path)
    names = sorted({key.rpartition("/")[0] for key in tensors})
    sites = {name: Site(tensors[f"{name}/down"], tensors[f"{name}/up"]) for name in names}
    return LoraStack(recipe.adapters.specs, sites)


def _write(stack: LoraStack, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    tensors = {f"{name}/down": site.down.contiguous() for name, site in stack.sites.items()}
    tensors |= {f"{name}/up": site.up.contiguous() for name, site in stack.sites.items()}
    save_file(tensors, unfinished)
    unfinished.replace(path)
