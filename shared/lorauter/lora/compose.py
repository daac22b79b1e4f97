"""Composition in float64: the sum that every way of serving a weighted set is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lorauter.lora.weights import LoraWeights


def compose_delta(
    adapters: Sequence[tuple[float, Mapping[str, LoraWeights]]],
) -> dict[str, NDArray[np.float64]]:
    """Returns sum_i w_i s_i B_i A_i, (out, in) float64, of every module that any adapter targets."""
    deltas: dict[str, NDArray[np.float64]] = {}
    for weight, modules in adapters:
        for module, lora in modules.items():
            part = weight * lora.scale * (lora.b.astype(np.float64) @ lora.a.astype(np.float64))
            deltas[module] = deltas[module] + part if module in deltas else part
    return deltas
