"""Writes an adapter in PEFT format: the config and the matrices, nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE
from lorauter.lora.config import AdapterConfig


def write_adapter(
    directory: Path,
    config: AdapterConfig,
    matrices: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors into ``directory``, made if missing.

    ``matrices`` holds A (rank, in) and B (out, rank) by full module name, float32 or float16.
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
    tensors: dict[str, NDArray[np.floating]] = {}
    for module, (a, b) in matrices.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(b)
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
