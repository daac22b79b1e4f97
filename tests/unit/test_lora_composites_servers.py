"""Composites as vLLM and TGI read them: their rules, traps included, written down once more in numpy.

Neither server runs without a GPU. What is here was read in vLLM 0.33 (lora/peft_helper.py, lora/utils.py,
lora/lora_model.py) and TGI 3.3 (adapters/lora.py and its punica_sgmv kernels).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lorauter.lora.compose import compose_delta
from lorauter.lora.composites import CompositeStore
from lorauter.lora.config import AdapterConfig
from lorauter.lora.recipe import Base, make_recipe
from lorauter.lora.scale import module_rank, names_module
from lorauter.lora.servers import Server, tgi, vllm
from lorauter.lora.store import AdapterStore
from lorauter.lora.weights import read_weights
from lorauter.lora.write import write_adapter

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LAYERS = 3
MODULES = {
    f"model.layers.{n}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}": (16, 12)
    for n in range(LAYERS)
    for name in (*ATTENTION, *MLP)
} | {"lm_head": (16, 20)}
BASE = Base("demo/base", "sha256:1", MODULES)
TGI_APPLIES = (*ATTENTION, *MLP, "qkv_proj", "c_proj", "c_fc")
TGI_KERNELS = {8, 16, 32, 64, 128}
Deltas = dict[str, NDArray[np.float64]]


class Refused(Exception):
    """What the server would answer instead of loading the adapter."""


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    return config, {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def as_tgi(folder: Path, shards: int = 1) -> Deltas:
    """Returns what TGI adds to each module; kinds of layers that it drops are missing."""
    config, tensors = read_files(folder)
    r, alpha = config["r"], config["lora_alpha"]
    deltas: Deltas = {}
    for kind in TGI_APPLIES:
        names = [name for name in MODULES if name.endswith(f".{kind}")]
        keys = [tuple(f"base_model.model.{name}.lora_{side}.weight" for side in "AB") for name in names]
        if not names or any(key not in tensors for pair in keys for key in pair):
            continue
        pairs = [(tensors[a], tensors[b]) for a, b in keys]
        if len({a.shape for a, _ in pairs}) > 1:
            raise Refused("torch.stack takes equal shapes only")
        scale = alpha / (math.sqrt(r) if config["use_rslora"] else r)
        # the scale of the kinds that follow comes from the padded rank of this one
        r = padded_by_tgi(pairs[0][0].shape[0], shards)
        if r // shards not in TGI_KERNELS:
            raise Refused(f"no suitable kernel for rank {r} on {shards} shards")
        deltas |= {name: scale * b @ a for name, (a, b) in zip(names, pairs, strict=True)}
    return deltas


def padded_by_tgi(rank: int, shards: int) -> int:
    least = 8 * shards
    return least if rank <= least else math.ceil(rank / 16) * 16


def as_vllm(folder: Path, max_lora_rank: int) -> Deltas:
    """Returns what vLLM adds to each module; raises Refused where it answers an error."""
    config, tensors = read_files(folder)
    if missing := {"r", "lora_alpha", "target_modules"} - set(config):
        raise Refused(f"Missing required configuration fields: {missing}")
    if config.get("bias", "none") != "none" or config.get("use_dora") or config.get("modules_to_save"):
        raise Refused("unsupported features")
    if config["r"] > max_lora_rank:
        raise Refused(f"LoRA rank {config['r']} is greater than max_lora_rank {max_lora_rank}")
    expected = {name.rpartition(".")[2] for name in MODULES}
    sides: dict[str, dict[str, NDArray[np.float64]]] = {}
    for key, tensor in tensors.items():
        parts = key.removeprefix("base_model.model.").split(".")
        if parts[-1] != "weight" or parts[-2] not in ("lora_A", "lora_B"):
            raise Refused(f"{key} is unsupported LoRA weight")
        name = ".".join(parts[:-2])
        if parts[-3] not in expected:
            raise Refused(f"expected target modules in {expected} but received {name}")
        sides.setdefault(name, {})[parts[-2]] = tensor
    # a name that the model lacks is taken without a word and has no effect
    return {
        name: vllm_scale(config, name) * pair["lora_B"] @ pair["lora_A"]
        for name, pair in sides.items()
        if name in MODULES
    }


def vllm_scale(config: Mapping[str, Any], name: str) -> float:
    def of(pattern: Mapping[str, float], default: float) -> float:
        return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)

    rank = of(config.get("rank_pattern", {}), config["r"])
    alpha = of(config.get("alpha_pattern", {}), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


CONFIGS = {
    "plain": AdapterConfig(BASE.model, 4, 8.0, False, ("q_proj", "k_proj", "v_proj")),
    "rslora": AdapterConfig(BASE.model, 6, 6.0, True, ("o_proj", *MLP)),
    "patterned": AdapterConfig(
        BASE.model, 3, 9.0, False, ("q_proj", "down_proj"), {"0.self_attn.q_proj": 2}, {"down_proj": 4.0}
    ),
    "first": AdapterConfig(BASE.model, 5, 5.0, False, ("up_proj", "q_proj")),
    "wide": AdapterConfig(BASE.model, 40, 16.0, False, ("o_proj",)),
}


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture
def adapters(tmp_path: Path, store: AdapterStore) -> dict[str, str]:
    """Digests by name; "first" is on the first layer alone."""
    digests = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        rng = np.random.default_rng(seed)
        matrices = {}
        for module, (width, out) in MODULES.items():
            if name == "first" and ".0." not in module:
                continue
            if any(names_module(target, module) for target in config.target_modules):
                rank = module_rank(config, module)
                matrices[module] = (
                    rng.normal(size=(rank, width)).astype(np.float32),
                    rng.normal(size=(out, rank)).astype(np.float32),
                )
        write_adapter(tmp_path / name, config, matrices)
        digests[name] = store.admit(tmp_path / name, MODULES).digest
    return digests


def composite(store: AdapterStore, weighted: Sequence[tuple[str, float]], server: Server) -> Path:
    return CompositeStore(store).ensure(make_recipe(BASE, weighted, server, "float32")).folder


def assert_is_the_sum(
    store: AdapterStore, weighted: Sequence[tuple[str, float]], loaded: Deltas, layers: Sequence[str]
) -> None:
    """The sum on every module, and nothing on those that no adapter adapts."""
    exact = compose_delta([(weight, read_weights(store.path(digest))) for digest, weight in weighted])
    assert set(loaded) == {name for name in MODULES if name.rpartition(".")[2] in layers}
    assert set(exact) <= set(loaded)
    for name, delta in loaded.items():
        assert np.allclose(delta, exact.get(name, 0.0), atol=1e-4), name


WEIGHTS = {"plain": 0.5, "rslora": -0.75, "patterned": 1.5, "first": 0.25}


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_tgi_adds_the_sum_when_a_composite_was_made_for_it(store, adapters, shards: int) -> None:
    weighted = [(adapters[name], weight) for name, weight in WEIGHTS.items()]
    folder = composite(store, weighted, tgi(shards))
    assert_is_the_sum(store, weighted, as_tgi(folder, shards), (*ATTENTION, *MLP))


def test_tgi_would_get_adapters_wrong_that_composites_of_one_get_right(store, adapters) -> None:
    plain = [(adapters["plain"], 1.0)]
    exact = compose_delta([(1.0, read_weights(store.path(adapters["plain"])))])
    k_proj = "model.layers.0.self_attn.k_proj"
    assert np.allclose(as_tgi(store.path(adapters["plain"]))[k_proj], exact[k_proj] / 2)
    assert_is_the_sum(store, plain, as_tgi(composite(store, plain, tgi())), ("q_proj", "k_proj", "v_proj"))
    with pytest.raises(Refused, match="equal shapes"):
        as_tgi(store.path(adapters["patterned"]))
    assert as_tgi(store.path(adapters["first"])) == {}
    for name in ("patterned", "first"):
        alone = [(adapters[name], 1.0)]
        layers = CONFIGS[name].target_modules
        assert_is_the_sum(store, alone, as_tgi(composite(store, alone, tgi())), layers)


def test_tgi_has_a_kernel_for_ranks_of_composites_alone(store, adapters) -> None:
    wide = [(adapters["wide"], 1.0)]
    with pytest.raises(Refused, match="no suitable kernel for rank 48"):
        as_tgi(store.path(adapters["wide"]))
    folder = composite(store, wide, tgi())
    assert_is_the_sum(store, wide, as_tgi(folder), ("o_proj",))
    config, _ = read_files(folder)
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (64, 64, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}


@pytest.mark.parametrize("max_lora_rank", [32, 64])
def test_vllm_adds_the_sum_when_a_composite_was_made_for_it(store, adapters, max_lora_rank: int) -> None:
    weighted = [(adapters[name], weight) for name, weight in WEIGHTS.items()]
    folder = composite(store, weighted, vllm(max_lora_rank))
    assert_is_the_sum(store, weighted, as_vllm(folder, max_lora_rank), (*ATTENTION, *MLP))


def test_vllm_would_multiply_by_nothing_but_one(store, adapters) -> None:
    """So that its own data type rounds B only once."""
    weighted = [(adapters[name], weight) for name, weight in WEIGHTS.items()]
    config, tensors = read_files(composite(store, weighted, vllm(32)))
    assert {vllm_scale(config, name) for name in MODULES} == {1.0}
    assert {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key} == {config["r"]}


def test_vllm_finds_a_composite_by_its_name_in_the_store(store, adapters) -> None:
    """Its file system resolver wants <folder>/<model>/adapter_config.json of exactly the base's name."""
    weighted = [(adapters["plain"], 0.3), (adapters["first"], 0.7)]
    recipe = make_recipe(BASE, weighted, vllm(32), "bfloat16")
    made = CompositeStore(store).ensure(recipe)
    folder = store.root / recipe.name
    assert folder == made.folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == BASE.model
    assert re.fullmatch(r"mix-[0-9a-f]{16}", recipe.name)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "composite.json",
    ]
