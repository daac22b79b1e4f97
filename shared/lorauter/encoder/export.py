"""Writes a plain BERT as one ONNX file: ``python -m lorauter.encoder.export DIRECTORY fp32|int8 FILE``.

The only place that needs torch for such an encoder, so it is always a process of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModel

from lorauter.encoder.cache import Precision

_OPSET = 17


class _SentenceBert(torch.nn.Module):
    """BERT, the mean over the tokens that the mask tells, and unit length."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Takes int64 (texts, tokens) twice, the mask 1 for tokens and 0 for padding; (texts, dimension)."""
        hidden = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=torch.zeros_like(input_ids),
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def write_model(directory: Path, precision: Precision, path: Path) -> None:
    """Writes ``path`` in one step, whole or not at all; its folder must exist."""
    with TemporaryDirectory(dir=path.parent, prefix="export-") as folder:
        made = Path(folder) / "fp32.onnx"
        _write_fp32(directory, made)
        if precision == "int8":
            made = _quantize(made)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(path)


def _write_fp32(directory: Path, path: Path) -> None:
    bert = AutoModel.from_pretrained(
        directory,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
        attn_implementation="eager",
        add_pooling_layer=False,
    )
    # a batch with padding, so that the trace holds the mask
    ids, mask = torch.tensor([[1, 2, 3], [1, 2, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    texts_and_tokens = {0: "texts", 1: "tokens"}
    with torch.inference_mode():
        torch.onnx.export(
            _SentenceBert(bert).eval(),
            (ids, mask),
            str(path),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamic_axes={
                "input_ids": texts_and_tokens,
                "attention_mask": texts_and_tokens,
                "vectors": {0: "texts"},
            },
        )


def _quantize(fp32: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    path = fp32.with_name("int8.onnx")
    # 7-bit weights cannot overflow where a CPU has no VNNI: vectors agree between machines
    quantize_dynamic(fp32, path, per_channel=True, reduce_range=True)
    return path


def main(arguments: list[str]) -> None:
    """Takes the encoder's directory, a precision and the file to write."""
    directory, precision, path = arguments
    write_model(Path(directory), "int8" if precision == "int8" else "fp32", Path(path))


if __name__ == "__main__":
    main(sys.argv[1:])
