"""Which modules an adapter has and at what rank, from its config and the header of its weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE, Limits, checked_header, split_name
from lorauter.lora.config import MAX_CONFIG_BYTES, parse_config
from lorauter.lora.scale import module_alpha, module_rank
from lorauter.lora.strict import open_regular, refused


@dataclass(frozen=True, slots=True)
class Layout:
    """The rank of each adapted module, by full name, sorted; an adapter has at least one.

    ``is_uniform``: every module has the rank and alpha that the config gives to all, and alpha is whole. A
    server that reads no patterns is right about such an adapter.
    """

    ranks: tuple[tuple[str, int], ...]
    is_uniform: bool

    @property
    def layers(self) -> frozenset[str]:
        """The last parts of the modules' names."""
        return frozenset(module.rpartition(".")[2] for module, _ in self.ranks)


def layout_of(ranks: Mapping[str, int], is_uniform: bool = True) -> Layout:
    """Returns the layout with these ranks by full module name."""
    return Layout(tuple(sorted(ranks.items())), is_uniform and len(set(ranks.values())) == 1)


def read_layout(directory: Path, limits: Limits | None = None) -> Layout:
    """Returns the layout of a checked adapter in ``directory``; reads no weights.

    Raises UnprocessableRequest as check_adapter does.
    """
    limits = limits or Limits()
    try:
        with open_regular(directory / CONFIG_FILE) as file:
            config = parse_config(file.read(MAX_CONFIG_BYTES + 1), limits.max_rank)
        with open_regular(directory / WEIGHTS_FILE) as file:
            tensors = checked_header(file, limits)
    except OSError:
        raise refused("ADAPTER_NOT_FOUND", "the adapter's files cannot be read") from None
    ranks = {}
    for name, tensor in tensors.items():
        module, side = split_name(name)
        if side == "A":
            ranks[module] = tensor.shape[0] if tensor.shape else 0
    plain = all(
        module_rank(config, module) == config.rank and module_alpha(config, module) == config.alpha
        for module in ranks
    )
    return layout_of(ranks, plain and config.alpha.is_integer())
