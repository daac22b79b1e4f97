"""Writes an adapter in PEFT format: the config and the matrices, nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE
from lorauter.lora.config import AdapterConfig
from lorauter.lora.precision import Precision, rounded


def write_adapter(
    directory: Path,
    config: AdapterConfig,
    matrices: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    precision: Precision | None = None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors into ``directory``, made if missing.

    ``matrices`` holds A (rank, in) and B (out, rank) by full module name, float32 or float16: written as they
    are, or rounded to ``precision``. Raises UnprocessableRequest (COMPOSITE_NOT_FINITE) as rounded() does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    raw = {
        "base_model_name_or_path": config.base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "target_modules": sorted(config.target_modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": config.rslora,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors: dict[str, NDArray[Any]] = {}
    for module, (a, b) in matrices.items():
        for side, matrix in (("A", a), ("B", b)):
            stored = (
                matrix if precision is None else rounded(matrix.astype(np.float32, copy=False), precision)
            )
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = np.ascontiguousarray(stored)
    specs = {
        name: TensorSpec(
            dtype=precision or array.dtype.name,
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in tensors.items()
    }
    serialize_file(specs, str(directory / WEIGHTS_FILE), metadata={"format": "pt"})
