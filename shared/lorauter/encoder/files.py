"""What identifies an encoder, and which of a task's examples it sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from lorauter.errors import FailedPrecondition

Item = TypeVar("Item")

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


def spaced(items: Sequence[Item], limit: int) -> list[Item]:
    """Returns at most ``limit`` items, evenly spaced, the first among them, in their order."""
    if len(items) <= limit:
        return list(items)
    return [items[position * len(items) // limit] for position in range(limit)]
