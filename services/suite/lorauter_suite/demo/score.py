"""Exact-match scores of the base, of single adapters and of weighted sets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from lorauter_suite.demo.batches import Batch, Codec, exact_rows
from lorauter_suite.demo.data import Example
from lorauter_suite.demo.stack import LoraStack

ROWS = 256
"""Rows per forward pass; bounds memory, changes no score."""


@torch.no_grad()
def base_right(model: LlamaForCausalLM, codec: Codec, examples: Sequence[Example]) -> Tensor:
    """Which examples the bare base answers right, as bools (examples,)."""
    parts = []
    for start in range(0, len(examples), ROWS):
        batch = codec.batch(examples[start : start + ROWS])
        parts.append(exact_rows(model(input_ids=batch.ids).logits, batch.labels))
    return torch.cat(parts)


@torch.no_grad()
def adapters_right(
    model: LlamaForCausalLM, stack: LoraStack, codec: Codec, examples: Sequence[Example]
) -> Tensor:
    """Which adapter answers which example right, as bools (adapters, examples)."""
    count = len(stack.specs)
    rows = max(1, ROWS // count)
    parts = []
    with stack.grouped(model):
        for start in range(0, len(examples), rows):
            batch = codec.batch(examples[start : start + rows])
            repeated = Batch(batch.ids.repeat(count, 1), batch.labels.repeat(count, 1))
            right = exact_rows(model(input_ids=repeated.ids).logits, repeated.labels)
            parts.append(right.view(count, -1))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def composed_right(
    model: LlamaForCausalLM,
    stack: LoraStack,
    codec: Codec,
    examples: Sequence[Example],
    chosen: Tensor,
    weights: Tensor,
) -> Tensor:
    """Which examples are answered right under each one's weighted set, as bools (examples,).

    `chosen` (examples, k) holds indices of adapters, `weights` (examples, k) their weights.
    """
    parts = []
    for start in range(0, len(examples), ROWS):
        rows = slice(start, start + ROWS)
        batch = codec.batch(examples[rows])
        with stack.mixed(model, chosen[rows], weights[rows]):
            parts.append(exact_rows(model(input_ids=batch.ids).logits, batch.labels))
    return torch.cat(parts)
