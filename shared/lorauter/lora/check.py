"""Decides whether a folder holds an adapter that can be served: linear, sound, of the pool's shapes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from lorauter.errors import UnprocessableRequest
from lorauter.lora.config import MAX_CONFIG_BYTES, AdapterConfig, parse_config
from lorauter.lora.entries import CONFIG_FILE, WEIGHTS_FILE, check_entries
from lorauter.lora.header import MalformedFileError, Tensor, ends_as_archive, read_header
from lorauter.lora.modules import read_modules
from lorauter.lora.scale import module_rank, names_module
from lorauter.lora.strict import open_regular, refused

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "CheckedAdapter", "Limits", "check_adapter", "read_modules"]

SCAN_BYTES = 4 * 1024 * 1024
"""Data is scanned in pieces of this size, whatever the file's."""

_TENSOR = re.compile(r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_([AB])\.weight")
_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_REASONS: Mapping[str, str] = {
    "corrupt": "ADAPTER_CORRUPT",
    "truncated": "ADAPTER_TRUNCATED",
    "pickle": "ADAPTER_PICKLE",
    "large": "ADAPTER_TOO_LARGE",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on an adapter."""

    max_rank: int = 128
    max_header_bytes: int = 1024 * 1024
    max_tensors: int = 8_192
    max_bytes: int = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter that passed.

    ``digest`` is "sha256:" and 64 hex digits over both files; ``size_bytes`` is the weights file's
    length; ``ranks_by_module`` is keyed by full module name.
    """

    config: AdapterConfig
    digest: str
    size_bytes: int
    ranks_by_module: Mapping[str, int]


def check_adapter(
    directory: Path, modules: Mapping[str, tuple[int, int]], limits: Limits | None = None
) -> CheckedAdapter:
    """Returns what is in ``directory`` if it is a servable LoRA adapter in PEFT format.

    ``modules`` holds (in, out) of the base model's linear layers; empty, shapes are checked only within
    the adapter. The layout is proven before any weight is read, and no weight may be NaN or infinite.
    Raises UnprocessableRequest: ADAPTER_NOT_FOUND, ADAPTER_PICKLE, ADAPTER_CODE, ADAPTER_FILE_NAME,
    ADAPTER_FILE_NOT_REGULAR, ADAPTER_CONFIG_INVALID, ADAPTER_UNSUPPORTED, ADAPTER_TOO_LARGE,
    ADAPTER_TRUNCATED, ADAPTER_CORRUPT, ADAPTER_SHAPE_MISMATCH, ADAPTER_NOT_FINITE.
    """
    limits = limits or Limits()
    check_entries(directory)
    with open_file(directory, CONFIG_FILE) as file:
        config_bytes = file.read(MAX_CONFIG_BYTES + 1)
    config = parse_config(config_bytes, limits.max_rank)
    with open_file(directory, WEIGHTS_FILE) as file:
        ranks, tensors = _check_layout(file, config, modules, limits)
        _check_finite(file, tensors)
        file.seek(0)
        weights_hash = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    digest = combine_digest(hashlib.sha256(config_bytes).hexdigest(), weights_hash)
    return CheckedAdapter(config, digest, size, ranks)


def check_source(directory: Path, modules: Mapping[str, tuple[int, int]], limits: Limits) -> None:
    """Returns if a stranger's folder is worth a copy: all that check_adapter asks for but sound weights.

    Reads a few pages however large the file is. Files with other names (hard links) are refused as well:
    they may be another folder's. Raises UnprocessableRequest as check_adapter does.
    """
    check_entries(directory)
    with open_file(directory, CONFIG_FILE, alone=True) as file:
        config = parse_config(file.read(MAX_CONFIG_BYTES + 1), limits.max_rank)
    with open_file(directory, WEIGHTS_FILE, alone=True) as file:
        _check_layout(file, config, modules, limits)


def combine_digest(config_hash: str, weights_hash: str) -> str:
    """Returns an adapter's digest from the SHA-256 (hex) of its two files."""
    lines = f"lorauter adapter 1\n{config_hash}  {CONFIG_FILE}\n{weights_hash}  {WEIGHTS_FILE}\n"
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def checked_header(file: BufferedReader, limits: Limits) -> dict[str, Tensor]:
    """Returns the tensors of an open adapter_model.safetensors; raises UnprocessableRequest."""
    size = os.fstat(file.fileno()).st_size
    if size > limits.max_bytes:
        raise refused("ADAPTER_TOO_LARGE", f"{WEIGHTS_FILE} has {size} bytes; {limits.max_bytes} are allowed")
    try:
        return read_header(file, limits.max_header_bytes, limits.max_tensors)
    except MalformedFileError as error:
        raise refused(_REASONS[error.kind], f"{WEIGHTS_FILE}: {error}; export the adapter again") from None


def split_name(tensor_name: str) -> tuple[str, str]:
    """Returns (full module name, "A" or "B") of a tensor; raises UnprocessableRequest."""
    match = _TENSOR.fullmatch(tensor_name)
    if match is None:
        raise refused(
            "ADAPTER_UNSUPPORTED",
            f"{WEIGHTS_FILE} holds {tensor_name[:200]!r}, not a linear layer's lora_A or lora_B weight",
        )
    return match[1], match[2]


def open_file(directory: Path, name: str, alone: bool = False) -> BufferedReader:
    """Opens one of an adapter's two files as open_regular() does.

    Raises UnprocessableRequest: ADAPTER_NOT_FOUND, ADAPTER_FILE_NOT_REGULAR.
    """
    try:
        return open_regular(directory / name, alone)
    except FileNotFoundError:
        raise refused("ADAPTER_NOT_FOUND", f"the folder has no {name}: export in PEFT format") from None
    except PermissionError as error:
        raise refused("ADAPTER_FILE_NOT_REGULAR", f"{error}: copy the file itself") from None


def _check_layout(
    file: BufferedReader, config: AdapterConfig, modules: Mapping[str, tuple[int, int]], limits: Limits
) -> tuple[dict[str, int], dict[str, Tensor]]:
    tensors = checked_header(file, limits)
    ranks = _check_pairs(tensors, config, modules)
    if ends_as_archive(file):
        raise refused(
            "ADAPTER_PICKLE",
            f"{WEIGHTS_FILE} is a zip archive as well, which may hold a pickle: export again",
        )
    return ranks, tensors


def _check_pairs(
    tensors: Mapping[str, Tensor], config: AdapterConfig, modules: Mapping[str, tuple[int, int]]
) -> dict[str, int]:
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, side = split_name(name)
        if tensor.dtype not in _EXPONENTS:
            raise refused("ADAPTER_UNSUPPORTED", f"{name} is {tensor.dtype}: use F32, F16 or BF16")
        sides.setdefault(module, {})[side] = tensor
    if not sides:
        raise refused("ADAPTER_CORRUPT", f"{WEIGHTS_FILE} holds no tensors")
    return {module: _check_pair(module, pair, config, modules) for module, pair in sorted(sides.items())}


def _check_pair(
    module: str,
    pair: Mapping[str, Tensor],
    config: AdapterConfig,
    modules: Mapping[str, tuple[int, int]],
) -> int:
    if len(pair) != 2:
        raise _mismatch(f"{module} has lora_{next(iter(pair))} alone")
    if not any(names_module(name, module) for name in config.target_modules):
        raise refused("ADAPTER_CONFIG_INVALID", f"{CONFIG_FILE}: target_modules does not name {module}")
    a, b = pair["A"].shape, pair["B"].shape
    rank = module_rank(config, module)
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank or a[1] < 1 or b[0] < 1:
        raise _mismatch(f"{module} has A {a} and B {b}; A must be ({rank}, in) and B (out, {rank})")
    if not modules:
        return rank
    if module not in modules:
        raise _mismatch(f"the base model has no linear layer {module}")
    if (a[1], b[0]) != tuple(modules[module]):
        have, want = (a[1], b[0]), tuple(modules[module])
        raise _mismatch(f"{module} is for a layer of (in, out) {have}; the base model's is {want}")
    return rank


def _mismatch(message: str) -> UnprocessableRequest:
    return refused("ADAPTER_SHAPE_MISMATCH", f"{message}: was it trained on this pool's base model?")


def _check_finite(file: BufferedReader, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        dtype, exponent = _EXPONENTS[tensor.dtype]
        file.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left:
            data = file.read(min(left, SCAN_BYTES))
            if not data:
                raise refused("ADAPTER_TRUNCATED", f"{WEIGHTS_FILE} became shorter while it was read")
            bits = np.frombuffer(data, dtype=dtype)
            if bool(((bits & exponent) == exponent).any()):
                raise refused("ADAPTER_NOT_FINITE", f"{name} holds NaN or infinite weights: train again")
            left -= len(data)
