"""What identifies an encoder, and what kind it is, by its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lorauter.errors import FailedPrecondition

_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})
"""Weights, pooling, tokenizer and their configs; not the model card."""
_PLAIN = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
"""Folders and kinds of the modules of a plain encoder."""


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


def is_plain_bert(directory: Path) -> bool:
    """Returns whether an encoder is BERT, then the mean over its tokens, then unit length, and nothing else.

    False too where a file is missing, or is not what sentence-transformers writes.
    """
    try:
        modules = [
            (module["path"], module["type"].rpartition(".")[2]) for module in _json(directory, "modules")
        ]
        model = _json(directory, "config")
        sentence = _json(directory, "sentence_bert_config")
        prompt = _json(directory, "config_sentence_transformers").get("default_prompt_name")
        return (
            modules == _PLAIN
            and _takes_the_mean(_json(directory, "1_Pooling/config"))
            and model["model_type"] == "bert"
            and not model.get("is_decoder")
            and not sentence.get("do_lower_case")
            and prompt is None
            and (directory / "tokenizer.json").is_file()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def most_tokens(directory: Path) -> int:
    """Returns how many tokens a plain BERT reads, [CLS] and [SEP] among them."""
    told = _json(directory, "sentence_bert_config").get("max_seq_length")
    told = told or _json(directory, "tokenizer_config").get("model_max_length")
    positions = int(_json(directory, "config")["max_position_embeddings"])
    return min(int(told or positions), positions)


def _takes_the_mean(pooling: dict[str, Any]) -> bool:
    if "pooling_mode" in pooling:
        return bool(pooling["pooling_mode"] == "mean")
    used = {mode for mode, on in pooling.items() if on and mode.startswith("pooling_mode_")}
    return used == {"pooling_mode_mean_tokens"}


def _json(directory: Path, name: str) -> Any:
    return json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
