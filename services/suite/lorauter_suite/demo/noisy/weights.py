"""Makes the weights of one adapter of a noisy pool from its parents'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorauter_suite.demo.noisy.recipe import (
    Kind,
    NoisyAdapter,
    NoisyRecipe,
    Source,
    all_sources,
    noisy_adapters,
)
from lorauter_suite.demo.recipe import ATTENTION
from lorauter_suite.demo.stack import LoraStack, stable_seed

Modules = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter: what it adds to a layer's output is B A x, with its scale in B.

    ``modules`` holds A (rank, inputs) and B (outputs, rank), float32, by the layer's full name; ranks may
    differ between layers.
    """

    modules: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(down.shape[0] for down, _ in self.modules.values())

    def rounded(self) -> Lora:
        """The same with weights that float16 holds exactly, as they are written."""
        return Lora({name: (a.half().float(), b.half().float()) for name, (a, b) in self.modules.items()})


class Workshop:
    """Makes the adapters of a recipe, one at a time, so that memory holds the sources only."""

    def __init__(
        self, recipe: NoisyRecipe, shipped: LoraStack, trained: Mapping[tuple[int, int], LoraStack]
    ) -> None:
        self.recipe = recipe
        self.adapters = noisy_adapters(recipe)
        self._places: dict[str, tuple[LoraStack, int]] = {}
        counts: dict[tuple[int, int], int] = {}
        for source in all_sources(recipe):
            key = (source.seed, source.step) if source.kind is not Kind.SHIPPED else (0, 0)
            place = counts[key] = counts.get(key, -1) + 1
            self._places[source.id] = (self._stack(source, shipped, trained), place)

    def make(self, adapter: NoisyAdapter) -> Lora:
        """The weights of ``adapter``, the same for the same recipe and sources."""
        generator = torch.Generator().manual_seed(stable_seed(self.recipe.seed, adapter.id))
        first, *others = (self._source(name) for name in adapter.parents)
        match adapter.kind:
            case Kind.SCALED:
                made = scaled(first, adapter.amount)
            case Kind.NOISED:
                made = noised(first, adapter.amount, generator)
            case Kind.DILUTED:
                made = blended(first, noise_like(first, generator), adapter.amount)
            case Kind.MIXED:
                made = blended(first, others[0], adapter.amount)
            case Kind.CROSSED:
                made = crossed(first, others[0])
            case Kind.RANDOM:
                made = scaled(noise_like(first, generator), adapter.amount)
            case _:
                made = first
        return Lora(made).rounded()

    def _source(self, name: str) -> Modules:
        stack, place = self._places[name]
        spec = stack.specs[place]
        return {
            layer: (site.down[place, : spec.rank], site.up[place, :, : spec.rank] * spec.scale)
            for layer, site in stack.sites.items()
            if layer.rpartition(".")[2] in spec.targets
        }

    @staticmethod
    def _stack(source: Source, shipped: LoraStack, trained: Mapping[tuple[int, int], LoraStack]) -> LoraStack:
        return shipped if source.kind is Kind.SHIPPED else trained[source.seed, source.step]


def scaled(modules: Modules, factor: float) -> Modules:
    """``factor`` times what the adapter adds."""
    return {name: (down, up * factor) for name, (down, up) in modules.items()}


def noise_like(modules: Modules, generator: torch.Generator) -> Modules:
    """Normal noise of the shapes of ``modules``, each matrix with the root mean square of its own."""

    def noise(weight: Tensor) -> Tensor:
        return torch.randn(weight.shape, generator=generator) * weight.square().mean().sqrt()

    return {name: (noise(down), noise(up)) for name, (down, up) in sorted(modules.items())}


def noised(modules: Modules, sigma: float, generator: torch.Generator) -> Modules:
    """``modules`` with ``sigma`` times noise of their own size added to every matrix."""
    noise = noise_like(modules, generator)
    return {
        name: (down + sigma * noise[name][0], up + sigma * noise[name][1])
        for name, (down, up) in modules.items()
    }


def blended(first: Modules, second: Modules, share: float) -> Modules:
    """``share`` of what ``first`` adds and the rest of what ``second`` adds, exactly: ranks add up."""
    parts = [scaled(first, share), scaled(second, 1 - share)]
    names = sorted({name for part in parts for name in part})
    pairs = {name: [part[name] for part in parts if name in part] for name in names}
    return {
        name: (torch.cat([down for down, _ in found]), torch.cat([up for _, up in found], dim=1))
        for name, found in pairs.items()
    }


def crossed(first: Modules, second: Modules) -> Modules:
    """The attention layers of ``first`` and the others of ``second``."""
    taken = {name: pair for name, pair in first.items() if name.rpartition(".")[2] in ATTENTION}
    return taken | {n: pair for n, pair in second.items() if n.rpartition(".")[2] not in ATTENTION}


def merged_weights(model: nn.Module, lora: Lora) -> dict[str, Tensor]:
    """The base's weights with ``lora`` added, by parameter name, for the layers that it adapts."""
    weights = {}
    for name, (down, up) in lora.modules.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        weights[f"{name}.weight"] = layer.weight + up @ down
    return weights
