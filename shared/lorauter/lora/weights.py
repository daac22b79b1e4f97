"""Reads an adapter's matrices as float32, whatever precision they are stored in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorauter.errors import UnprocessableRequest
from lorauter.identifiers import backend_name
from lorauter.lora.check import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Limits,
    checked_header,
    combine_digest,
    split_name,
)
from lorauter.lora.config import MAX_CONFIG_BYTES, parse_config
from lorauter.lora.header import Tensor
from lorauter.lora.scale import module_scale
from lorauter.lora.strict import open_regular, refused


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One module's share of an adapter: y = Wx + scale·b(a·x).

    ``a`` is (rank, in) and ``b`` is (out, rank), both float32.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float


def read_weights(
    directory: Path, limits: Limits | None = None, digest: str | None = None
) -> dict[str, LoraWeights]:
    """Returns the matrices of a checked adapter by full module name.

    The layout is read with the same strictness as by check_adapter. With ``digest``, the bytes that the
    matrices are made of must be that adapter's, so that nothing can change between a check and a load.
    Raises UnprocessableRequest.
    """
    limits = limits or Limits()
    try:
        with open_regular(directory / CONFIG_FILE) as file:
            config_bytes = file.read(MAX_CONFIG_BYTES + 1)
        config = parse_config(config_bytes, limits.max_rank)
        with HashingReader(open_regular(directory / WEIGHTS_FILE).detach()) as weights:
            tensors = sorted(checked_header(weights, limits).items(), key=lambda item: item[1].begin)
            matrices = {split_name(name): _read(weights, tensor) for name, tensor in tensors}
    except OSError:
        raise refused("ADAPTER_NOT_FOUND", "the adapter's files cannot be read") from None
    if digest is not None:
        _check_digest(digest, config_bytes, weights)
    return {
        module: LoraWeights(a, _side(matrices, module, "B"), module_scale(config, module))
        for (module, side), a in matrices.items()
        if side == "A"
    }


class HashingReader(BufferedReader):
    """A file that hashes what is read: of all of it, if it is read from its beginning to its end in order."""

    def __init__(self, raw: RawIOBase) -> None:
        super().__init__(raw)
        self.hashed = hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns the next bytes, hashed."""
        data = super().read(size)
        self.hashed.update(data)
        return data


def _check_digest(digest: str, config: bytes, weights: HashingReader) -> None:
    if (
        combine_digest(hashlib.sha256(config).hexdigest(), weights.hashed.hexdigest())
        != f"sha256:{backend_name(digest)}"
    ):
        raise refused(
            "ADAPTER_CORRUPT",
            f"adapter {digest} has changed in the store: remove its folder and register it again",
            digest=digest,
        )


def _side(
    matrices: Mapping[tuple[str, str], NDArray[np.float32]], module: str, side: str
) -> NDArray[np.float32]:
    if (module, side) not in matrices:
        raise _incomplete(module)
    return matrices[module, side]


def _incomplete(module: str) -> UnprocessableRequest:
    return refused("ADAPTER_SHAPE_MISMATCH", f"{module} lacks one of lora_A and lora_B")


def _read(file: BufferedReader, tensor: Tensor) -> NDArray[np.float32]:
    file.seek(tensor.begin)
    data = file.read(tensor.end - tensor.begin)
    if len(data) != tensor.end - tensor.begin:
        raise refused("ADAPTER_TRUNCATED", f"{WEIGHTS_FILE} became shorter while it was read")
    if tensor.dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        values = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    elif tensor.dtype in ("F32", "F16"):
        values = np.frombuffer(data, dtype="<f4" if tensor.dtype == "F32" else "<f2").astype(np.float32)
    else:
        raise refused("ADAPTER_UNSUPPORTED", f"weights of type {tensor.dtype}: use F32, F16 or BF16")
    return values.reshape(tensor.shape)
