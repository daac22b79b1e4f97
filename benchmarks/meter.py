"""Answers examples with one adapter after the other, teacher-forced, as fast as one core can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from lorauter_suite.demo.batches import IGNORED, Codec, collate
from lorauter_suite.demo.data import Example
from lorauter_suite.demo.noisy.weights import Lora, merged_weights

ROWS = 32
"""Rows of a forward pass: few, so that they have like lengths and stay in the processor's cache."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of tokens ``ids`` (rows, length); target k follows token ``positions[k]`` of row ``rows[k]``."""

    ids: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    counts: Tensor


class Meter:
    """Measures adapters on the same examples. An adapter's weights are added to the base's for it.

    A greedy answer is right exactly if every teacher-forced token is. The answer's marker belongs to the
    prompt, as the tokenizer writes it. The forward pass is Llama's with logits, and the last layer's
    second half, at answers only: it gives transformers' logits in three quarters of the time.
    """

    def __init__(self, model: LlamaForCausalLM, codec: Codec, examples: Sequence[Example]) -> None:
        config = model.config
        self._model = model
        self._weights = dict(model.named_parameters())
        self._layers, self._heads = config.num_hidden_layers, config.num_attention_heads
        self._width, self._epsilon = config.hidden_size, config.rms_norm_eps
        self._cos, self._sin = _rotation(model)
        answers = [codec.answer(example.target) for example in examples]
        prompts = [codec.prompt(example.input) for example in examples]
        pairs = [([*p, *a[:1]], a[1:]) for p, a in zip(prompts, answers, strict=True)]
        self._order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        ordered = [pairs[i] for i in self._order]
        self._batches = [_batch(ordered[i : i + ROWS]) for i in range(0, len(ordered), ROWS)]

    @torch.inference_mode()
    def measure(self, lora: Lora | None) -> tuple[Floats, Floats]:
        """Returns scores, 0 or 1, and likelihoods (examples,) of one adapter; None is the base.

        A likelihood is the mean log-probability of the target's tokens and the end.
        """
        weights = self._weights | (merged_weights(self._model, lora) if lora is not None else {})
        found = torch.cat([self._judged(batch, weights) for batch in self._batches], dim=1).double().numpy()
        result = np.empty_like(found)
        result[:, self._order] = found
        return result[0], result[1]

    def _judged(self, batch: _Batch, weights: Mapping[str, Tensor]) -> Tensor:
        """Scores and likelihoods (2, rows)."""
        logits = self._logits(batch, weights)
        logprobs = logits.gather(-1, batch.targets[:, None])[:, 0] - logits.logsumexp(-1)
        right = (logits.argmax(-1) == batch.targets).float()
        sums = torch.zeros(2, len(batch.ids)).index_add(1, batch.rows, torch.stack([right, logprobs]))
        return torch.stack([(sums[0] == batch.counts).float(), sums[1] / batch.counts])

    def _logits(self, batch: _Batch, weights: Mapping[str, Tensor]) -> Tensor:
        """Logits (targets, vocabulary) where targets are to follow."""
        x = functional.embedding(batch.ids, weights["model.embed_tokens.weight"])
        for layer in range(self._layers):
            own = f"model.layers.{layer}."
            mixed = self._attention(self._norm(x, weights[own + "input_layernorm.weight"]), own, weights)
            if layer == self._layers - 1:
                mixed, x = mixed[batch.rows, batch.positions], x[batch.rows, batch.positions]
            x = x + functional.linear(mixed, weights[own + "self_attn.o_proj.weight"])
            y = self._norm(x, weights[own + "post_attention_layernorm.weight"])
            gate = functional.silu(functional.linear(y, weights[own + "mlp.gate_proj.weight"]))
            gate *= functional.linear(y, weights[own + "mlp.up_proj.weight"])
            x = x + functional.linear(gate, weights[own + "mlp.down_proj.weight"])
        logits: Tensor = self._model.lm_head(self._norm(x, weights["model.norm.weight"]))
        return logits

    def _attention(self, x: Tensor, own: str, weights: Mapping[str, Tensor]) -> Tensor:
        rows, length, width = x.shape
        query, key, value = (
            functional.linear(x, weights[f"{own}self_attn.{name}_proj.weight"])
            .view(rows, length, self._heads, width // self._heads)
            .transpose(1, 2)
            for name in "qkv"
        )
        turned = (self._turned(query), self._turned(key), value)
        return functional.scaled_dot_product_attention(*turned, is_causal=True).transpose(1, 2).flatten(2)

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary position embedding of (rows, heads, length, size)."""
        first, second = x.chunk(2, dim=-1)
        cos, sin = self._cos[: x.shape[2]], self._sin[: x.shape[2]]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (self._width,), weight, self._epsilon)


def _rotation(model: LlamaForCausalLM) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, size / 2) of the model's rotary embedding."""
    positions = torch.arange(model.config.max_position_embeddings)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1), positions)
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


def _batch(pairs: Sequence[tuple[list[int], list[int]]]) -> _Batch:
    ids, labels = (part[:, :-1] for part in collate(pairs))
    rows, positions = (labels != IGNORED).nonzero(as_tuple=True)
    return _Batch(ids, rows, positions, labels[rows, positions], torch.bincount(rows))
