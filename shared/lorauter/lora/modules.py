"""The linear layers of a base model, read from its files' headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorauter.errors import FailedPrecondition
from lorauter.lora.header import MalformedFileError, Tensor, read_header
from lorauter.lora.strict import open_regular, parse_object

MAX_BASE_HEADER_BYTES = 64 * 1024 * 1024
MAX_BASE_CONFIG_BYTES = 16 * 1024 * 1024
MAX_BASE_TENSORS = 1_000_000

LINEAR_MODEL_TYPES = frozenset(
    {
        "gemma",
        "gemma2",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
"""Architectures whose layers are torch.nn.Linear: weights are stored as (out, in)."""

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "wpe.weight")


def read_modules(base_dir: Path) -> dict[str, tuple[int, int]]:
    """Returns (in, out) of every linear layer of the model in ``base_dir``, by full module name.

    Reads config.json and the headers of model.safetensors or its shards; no weights. Raises
    FailedPrecondition (BASE_UNREADABLE, BASE_UNSUPPORTED).
    """
    model_type = _object(base_dir / "config.json").get("model_type")
    if model_type != "gpt2" and model_type not in LINEAR_MODEL_TYPES:
        known = ", ".join(sorted({*LINEAR_MODEL_TYPES, "gpt2"}))
        raise FailedPrecondition(
            "BASE_UNSUPPORTED",
            f"model type {str(model_type)[:80]!r} is not known; these are: {known}",
        )
    modules: dict[str, tuple[int, int]] = {}
    for tensor_name, tensor in _tensors(base_dir).items():
        if len(tensor.shape) != 2 or not tensor_name.endswith(".weight"):
            continue
        if tensor_name.endswith(_EMBEDDINGS):
            continue
        name = tensor_name.removesuffix(".weight")
        first, second = tensor.shape
        if model_type == "gpt2":
            modules[_gpt2_name(name)] = (second, first) if name == "lm_head" else (first, second)
        else:
            modules[name] = (second, first)
    return modules


def _gpt2_name(name: str) -> str:
    # The hub's gpt2 files lack the prefix that the module has inside GPT2LMHeadModel.
    return f"transformer.{name}" if name.startswith("h.") else name


def _tensors(base_dir: Path) -> Mapping[str, Tensor]:
    if (base_dir / "model.safetensors").exists():
        names = ["model.safetensors"]
    else:
        weight_map = _object(base_dir / "model.safetensors.index.json").get("weight_map")
        if not isinstance(weight_map, dict):
            raise _unreadable("model.safetensors.index.json has no weight_map")
        names = sorted({Path(str(name)).name for name in weight_map.values()})
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            # Hub caches hold links to blobs: the base is the operator's own, so links are followed.
            with open_regular((base_dir / name).resolve()) as file:
                tensors.update(read_header(file, MAX_BASE_HEADER_BYTES, MAX_BASE_TENSORS))
        except (OSError, MalformedFileError) as error:
            raise _unreadable(f"{name}: {error}") from None
    return tensors


def _object(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path.resolve()) as file:
            return parse_object(file.read(MAX_BASE_CONFIG_BYTES))
    except FileNotFoundError:
        raise _unreadable(f"{path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise _unreadable(f"{path.name}: {error}") from None


def _unreadable(message: str) -> FailedPrecondition:
    return FailedPrecondition("BASE_UNREADABLE", f"base model: {message}; give a safetensors model")
