"""Adapters that no pool should take: each is broken in one way, and the reason it must get is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE
from lorauter_suite.demo.noisy.files import write_lora
from lorauter_suite.demo.noisy.weights import Lora

Stage = Literal["registration", "matching"]

RANK_TOO_HIGH = 129
"""One more than services take by default."""

OVERFLOW = 1e30
"""A factor that float32 holds, and whose effect in the model it does not."""

Break = Callable[[Lora, Path], None]
"""Writes a broken variant of an adapter to a folder."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A way to be broken: where it is noticed, by which reason, and how it is made."""

    name: str
    stage: Stage
    reason: str
    write: Break


def _wrong_shapes(lora: Lora, folder: Path) -> None:
    """For a base model whose layers take twice as much input."""
    write_lora(folder, Lora({n: (torch.cat([a, a], 1), b) for n, (a, b) in lora.modules.items()}))


def _not_a_number(lora: Lora, folder: Path) -> None:
    modules = {name: (down.clone(), up) for name, (down, up) in lora.modules.items()}
    next(iter(modules.values()))[0][0, 0] = torch.nan
    write_lora(folder, Lora(modules))


def _foreign_base(lora: Lora, folder: Path) -> None:
    write_lora(folder, lora)
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "elsewhere/other-base"}
    path.write_text(json.dumps(config))


def _truncated(lora: Lora, folder: Path) -> None:
    write_lora(folder, lora)
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1000])


def _rank_too_high(lora: Lora, folder: Path) -> None:
    def padded(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        more = RANK_TOO_HIGH - down.shape[0]
        return torch.nn.functional.pad(down, (0, 0, 0, more)), torch.nn.functional.pad(up, (0, more))

    write_lora(folder, Lora({name: padded(*pair) for name, pair in lora.modules.items()}))


def _without_effect(lora: Lora, folder: Path) -> None:
    """As training begins: B is zero."""
    write_lora(folder, Lora({name: (a, torch.zeros_like(b)) for name, (a, b) in lora.modules.items()}))


def _overflowing(lora: Lora, folder: Path) -> None:
    write_lora(folder, Lora({n: (a, b * OVERFLOW) for n, (a, b) in lora.modules.items()}), half=False)


BROKEN = (
    Broken("wrong-shapes", "registration", "ADAPTER_SHAPE_MISMATCH", _wrong_shapes),
    Broken("not-a-number", "registration", "ADAPTER_NOT_FINITE", _not_a_number),
    Broken("foreign-base", "registration", "ADAPTER_BASE_MISMATCH", _foreign_base),
    Broken("truncated", "registration", "ADAPTER_TRUNCATED", _truncated),
    Broken("rank-too-high", "registration", "ADAPTER_CONFIG_INVALID", _rank_too_high),
    Broken("without-effect", "matching", "NO_EFFECT", _without_effect),
    Broken("overflowing", "matching", "NOT_FINITE", _overflowing),
)
"""Every way, with what the registry refuses it for, or what matching quarantines it for."""
