"""Many LoRA adapters on one model at once: one per group of rows, or a weighted set per row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorauter_suite.demo.recipe import ALL_LINEAR, AdapterSpec

Delta = Callable[["Site", Tensor], Tensor]
"""From a linear layer's input to what the adapters add to its output."""


@dataclass
class Site:
    """All adapters' weights at one linear layer, padded with zeros to the largest rank.

    `down` (adapters, rank, inputs) is LoRA's A, `up` (adapters, outputs, rank) its B. Where an adapter has a
    smaller rank or does not target the layer both are zero, and zero is a fixed point of training.
    """

    down: Tensor
    up: Tensor


class LoraStack:
    """The weights of a list of adapters at every linear layer that any of them targets."""

    def __init__(self, specs: Sequence[AdapterSpec], sites: Mapping[str, Site]) -> None:
        self.specs = tuple(specs)
        self.sites = dict(sites)
        self.scales = torch.tensor([spec.scale for spec in specs])

    @contextmanager
    def grouped(self, model: nn.Module) -> Iterator[None]:
        """Within: the rows fall into equal consecutive groups, one for each adapter."""

        def delta(site: Site, inputs: Tensor) -> Tensor:
            flat = inputs.reshape(len(self.specs), -1, inputs.shape[-1])
            low = torch.bmm(flat, site.down.transpose(1, 2)) * self.scales[:, None, None]
            return torch.bmm(low, site.up.transpose(1, 2)).reshape(*inputs.shape[:-1], -1)

        with self._attached(model, delta):
            yield

    @contextmanager
    def mixed(self, model: nn.Module, chosen: Tensor, weights: Tensor) -> Iterator[None]:
        """Within: row i gets the sum of w s B A x over its `chosen` adapters.

        `chosen` (rows, k) holds indices of adapters, `weights` (rows, k) their weights.
        """
        factors = (weights * self.scales[chosen])[:, :, None, None]

        def delta(site: Site, inputs: Tensor) -> Tensor:
            down = site.down[chosen].flatten(1, 2)
            up = (site.up[chosen] * factors).transpose(1, 2).flatten(2, 3)
            return inputs @ down.transpose(1, 2) @ up.transpose(1, 2)

        with self._attached(model, delta):
            yield

    @contextmanager
    def _attached(self, model: nn.Module, delta: Delta) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        for name, site in self.sites.items():

            def hook(
                module: nn.Module, args: tuple[Tensor, ...], output: Tensor, site: Site = site
            ) -> Tensor:
                return output + delta(site, args[0])

            handles.append(model.get_submodule(name).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def linear_names(model: nn.Module) -> list[str]:
    """The names of the linear layers that adapters may target."""
    names = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in names if name.rpartition(".")[2] in ALL_LINEAR]


def new_stack(model: nn.Module, specs: Sequence[AdapterSpec], seed: int) -> LoraStack:
    """Fresh adapters: A random, B zero. Each draws from its own seed, whatever else is in the list."""
    rank = max(spec.rank for spec in specs)
    generators = [torch.Generator().manual_seed(stable_seed(seed, spec.id)) for spec in specs]
    sites: dict[str, Site] = {}
    for name in linear_names(model):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        down = torch.zeros(len(specs), rank, layer.in_features)
        for i, spec in enumerate(specs):
            if name.rpartition(".")[2] in spec.targets:
                bound = layer.in_features**-0.5
                down[i, : spec.rank].uniform_(-bound, bound, generator=generators[i])
        sites[name] = Site(down, torch.zeros(len(specs), layer.out_features, rank))
    return LoraStack(specs, sites)


def stable_seed(seed: int, name: str) -> int:
    """A 63-bit seed for `name`, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) >> 1
