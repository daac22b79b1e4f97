"""Many families are served exactly, rows mixed, in prefill and in decoding; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lorauter.errors import FailedPrecondition
from lorauter.lora.compose import compose_delta
from lorauter.lora.config import AdapterConfig
from lorauter.lora.store import AdapterStore
from lorauter.lora.weights import read_weights
from lorauter_engine.model.network import Network, Placement
from lorauter_engine.model.plan import Concatenations, plan_batch
from lorauter_engine.model.stacks import Stacks

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 12,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GPT: dict[str, Any] = {"vocab_size": 320, "n_positions": 256, "n_embd": 48, "n_layer": 2, "n_head": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "qwen2": {key: value for key, value in SHAPE.items() if key != "head_dim"},
    "qwen3": SHAPE,
    "mistral": SHAPE,
    "gpt2": {**GPT, "eos_token_id": 1, "bos_token_id": 1},
    "gemma2": SHAPE,
    "phi3": {key: value for key, value in SHAPE.items() if key != "head_dim"},
    "gpt_neox": {key: value for key, value in SHAPE.items() if key != "head_dim"},
}
"""The last three have capped attention, fused projections, and parallel attention with its own rotation."""

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Largest difference to the float64 sum, as a share of the largest logit: bfloat16 has 8 bits."""

STEPS = 6


def save(family: str, folder: Path) -> Path:
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = 1.0 if "emb" in name or "wte" in name else 1.5 / 48**0.5
            parameter.data = torch.randn(parameter.shape) * scale
    model.save_pretrained(folder)
    return folder


def reference(base: Path, store: AdapterStore, weighted: Any) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager")
    deltas = compose_delta([(weight, read_weights(store.path(digest))) for digest, weight in weighted])
    for name, delta in deltas.items():
        module = model.get_submodule(name)
        added = torch.from_numpy(delta)
        module.weight.data = module.weight.data + (added.T if isinstance(module, Conv1D) else added)
    return model


def adapters_on(network: Network, store: AdapterStore, residencies: Any, folder: Path) -> list[str]:
    """Three adapters of other ranks and scales, that share the model's layers out among them, and overlap."""
    targets = sorted({name.rpartition(".")[2] for name in network.modules} - {"lm_head", "embed_out"})
    configs = [
        AdapterConfig("b", 4, 8.0, False, tuple(targets)),
        AdapterConfig("b", 9, 6.0, True, tuple(targets[::2])),
        AdapterConfig("b", 1, 2.0, False, tuple(targets[1::2])),
    ]
    return [
        store.admit(
            residencies.random_adapter(folder / str(i), network.modules, config, i), network.modules
        ).digest
        for i, config in enumerate(configs)
    ]


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_rows_equal_the_float64_sum_in_prefill_and_decoding(
    family: str, dtype: torch.dtype, tmp_path: Path, residencies
) -> None:
    base = save(family, tmp_path / "base")
    network = Network(base, Placement(torch.device("cpu"), dtype))
    store = AdapterStore(tmp_path / "store")
    a, b, c = adapters_on(network, store, residencies, tmp_path)
    sets = [sorted(s) for s in ([], [(a, 1.0)], [(a, 0.5), (b, 0.3), (c, 0.2)], [(b, -0.8), (c, 1.5)])]
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 320, size=size).tolist() for size in (3, 17, 9, 1)]
    spoken = rng.integers(2, 320, size=(STEPS, 4)).tolist()
    residency = residencies(network, store)
    adapters = [residency.acquire(weighted) for weighted in sets]
    plan = plan_batch(adapters, 1, Concatenations(2**20))
    assert plan is not None
    with torch.inference_mode():
        found = [network.prefill(prompts, plan, [range(len(p) - 1, len(p)) for p in prompts], 0)]
        for step, tokens in enumerate(spoken):
            if step == STEPS // 2 and not plan.is_union:
                plan = Stacks(2**20).stacked(plan, adapters)
            found.append(network.decode(tokens, [len(p) + step for p in prompts], plan))
    for row, (prompt, weighted) in enumerate(zip(prompts, sets, strict=True)):
        text = torch.tensor([prompt + [tokens[row] for tokens in spoken]])
        with torch.no_grad():
            expected = reference(base, store, weighted)(input_ids=text).logits[0, len(prompt) - 1 :]
            bare = reference(base, store, [])(input_ids=text).logits[0, len(prompt) - 1 :]
        ours = torch.stack([logits[row] for logits in found]).double()
        largest = max(1.0, float(expected.abs().max()))
        assert float((ours - expected).abs().max()) < BOUNDS[dtype] * largest
        if weighted:
            assert float((expected - bare).abs().max()) > BOUNDS[dtype] * largest, "adapters change nothing"


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("mamba", {"max_position_embeddings": 256}, "rows cannot be decoded side by side"),
        ("bloom", {"max_position_embeddings": 256}, "rows cannot be decoded side by side"),
        ("bloom", {}, "says no max_position_embeddings"),
    ],
)
def test_a_model_is_refused_at_the_start_when_it_cannot_be_served(
    family: str, more: dict[str, int], why: str, tmp_path: Path
) -> None:
    shape = {"vocab_size": 320, "hidden_size": 48, "num_hidden_layers": 2, "n_head": 4, "state_size": 8}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape, **more)).save_pretrained(tmp_path)
    with pytest.raises(
        FailedPrecondition, match=f"a model of type {family} cannot be served: .*{why}"
    ) as caught:
        Network(tmp_path, Placement(torch.device("cpu"), torch.float32))
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_the_context_ends_where_a_layer_would_forget(tmp_path: Path) -> None:
    def context(folder: Path, family: str, **changes: Any) -> int:
        config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return Network(folder, Placement(torch.device("cpu"), torch.float32)).context

    assert context(tmp_path / "full", "mistral", sliding_window=None) == 256
    assert context(tmp_path / "slides", "mistral", sliding_window=32) == 32
    assert context(tmp_path / "alternates", "gemma2", sliding_window=64) == 64
    assert context(tmp_path / "unused", "qwen2", sliding_window=32, use_sliding_window=False) == 256
