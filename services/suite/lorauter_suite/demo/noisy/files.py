"""Writes adapters of a noisy pool in PEFT format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lorauter.lora.config import AdapterConfig
from lorauter.lora.write import write_adapter
from lorauter_suite.demo.noisy.weights import Lora
from lorauter_suite.demo.recipe import BASE_ID


def write_lora(folder: Path, lora: Lora, half: bool = True) -> None:
    """Writes ``lora`` to ``folder``, in float16 or float32; its scale is 1, as alpha equals the rank."""
    ranks = {name: down.shape[0] for name, (down, _) in lora.modules.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: rank for name, rank in ranks.items() if rank != usual}
    config = AdapterConfig(
        base_model=BASE_ID,
        rank=usual,
        alpha=float(usual),
        rslora=False,
        target_modules=tuple({name.rpartition(".")[2] for name in ranks}),
        rank_pattern=others,
        alpha_pattern={name: float(rank) for name, rank in others.items()},
    )
    write_adapter(
        folder, config, {n: (_array(a, half), _array(b, half)) for n, (a, b) in lora.modules.items()}
    )


def _array(weight: Tensor, half: bool) -> NDArray[np.floating]:
    array: NDArray[np.floating] = (weight.half() if half else weight).numpy()
    return array
