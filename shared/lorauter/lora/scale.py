"""How strongly an adapter acts in each module: alpha/r, or alpha/sqrt(r) for rsLoRA, after the patterns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from lorauter.lora.config import AdapterConfig

Number = TypeVar("Number", int, float)


def module_rank(config: AdapterConfig, module: str) -> int:
    """Returns the rank that the configuration gives to a module, by its full name."""
    return _patterned(config.rank_pattern, module, config.rank)


def module_alpha(config: AdapterConfig, module: str) -> float:
    """Returns lora_alpha of a module, by its full name."""
    return _patterned(config.alpha_pattern, module, config.alpha)


def module_scale(config: AdapterConfig, module: str) -> float:
    """Returns the factor s in y = Wx + s·B(Ax) of a module, by its full name."""
    rank = module_rank(config, module)
    return module_alpha(config, module) / (math.sqrt(rank) if config.rslora else rank)


def names_module(name: str, module: str) -> bool:
    """Tells whether a configured name means ``module``: the whole name, or its last parts."""
    return module == name or module.endswith(f".{name}")


def _patterned(pattern: Mapping[str, Number], module: str, default: Number) -> Number:
    for name, value in pattern.items():
        if names_module(name, module):
            return value
    return default
