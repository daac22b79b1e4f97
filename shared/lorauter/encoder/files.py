"""What identifies an encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lorauter.errors import FailedPrecondition

_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})
"""Weights, pooling, tokenizer and their configs; not the model card."""


def files_digest(directory: Path) -> str:
    """Returns ``sha256:<hex>`` over the names and contents of an encoder's files.

    Raises FailedPrecondition (ENCODER_INVALID) if there are no safetensors weights among them.
    """
    files = sorted(path for path in directory.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise FailedPrecondition(
            "ENCODER_INVALID",
            f"{directory} holds no .safetensors weights: LORAUTER_ENCODER must name a sentence-transformers "
            "model in that format",
        )
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(directory).as_posix()} {content}\n".encode())
    return "sha256:" + total.hexdigest()
