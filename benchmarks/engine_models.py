"""What the engine's benchmark runs on: a random Llama, random adapters, and weighted sets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from lorauter.lora.check import read_modules
from lorauter.lora.config import AdapterConfig
from lorauter.lora.store import AdapterStore
from lorauter.lora.write import write_adapter

BASE_ID = "benchmark/random-llama"
VOCABULARY = 16_000
RANK = 8
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Weighted = tuple[tuple[str, float], ...]
"""Names of adapters with their weights."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A base model's folder and its adapters: folders and digests by name, all in ``store``."""

    base: Path
    store: AdapterStore
    folders: Mapping[str, Path]
    digests: Mapping[str, str]


def random_pool(folder: Path, adapters: int, seed: int) -> Pool:
    """Makes a Llama of 110 M random parameters, and as many adapters of rank 8 on all its linear layers."""
    base = folder / "base"
    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=None,
            initializer_range=0.05,
        )
    )
    model.save_pretrained(base)
    _save_tokenizer(base)
    modules = read_modules(base)
    rng = np.random.default_rng(seed)
    folders = {
        f"random-{number}": _random_adapter(folder / f"adapter-{number}", modules, rng)
        for number in range(adapters)
    }
    return stored(base, folders, folder / "store")


def stored(base: Path, folders: Mapping[str, Path], root: Path) -> Pool:
    """Puts the adapters into a store under ``root``."""
    store, modules = AdapterStore(root), read_modules(base)
    return Pool(
        base, store, folders, {name: store.admit(path, modules).digest for name, path in folders.items()}
    )


def weighted_sets(names: Sequence[str], sets: int, size: int, seed: int) -> list[Weighted]:
    """Draws sets of ``size`` adapters; no adapter comes twice before every other has come once.

    Weights are positive and sum to 1, as the router's do, and have six decimals, as a composite's.
    """
    rng = np.random.default_rng(seed)
    order: list[str] = []
    while len(order) < sets * size:
        order += [names[place] for place in rng.permutation(len(names))]
    drawn = []
    for start in range(0, sets * size, size):
        weights = [round(float(weight), 6) for weight in rng.dirichlet([2.0] * size)]
        drawn.append(tuple(zip(order[start : start + size], weights, strict=True)))
    return drawn


def random_prompts(count: int, seed: int) -> list[str]:
    """Returns texts of 16 to 48 tokens of the random model."""
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{token}" for token in rng.integers(0, VOCABULARY, size=rng.integers(16, 49)))
        for _ in range(count)
    ]


def _save_tokenizer(folder: Path) -> None:
    # Every token is a word of its own, so that equal texts are equal tokens.
    words = {f"w{token}": token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, pad_token="w0").save_pretrained(folder)  # noqa: S106


def _random_adapter(folder: Path, modules: Mapping[str, tuple[int, int]], rng: np.random.Generator) -> Path:
    matrices = {
        name: (
            rng.normal(scale=width**-0.5, size=(RANK, width)).astype(np.float32),
            rng.normal(scale=0.1, size=(out, RANK)).astype(np.float32),
        )
        for name, (width, out) in modules.items()
        if name.endswith(LINEAR)
    }
    write_adapter(folder, AdapterConfig(BASE_ID, RANK, 2.0 * RANK, False, LINEAR), matrices)
    return folder
