"""A composite that PEFT reads back is the float64 sum, whatever set it was made from."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE, read_modules
from lorauter.lora.compose import compose_delta
from lorauter.lora.composites import Composite, CompositeStore
from lorauter.lora.config import AdapterConfig
from lorauter.lora.precision import Precision
from lorauter.lora.recipe import Base, make_recipe
from lorauter.lora.scale import module_rank, names_module
from lorauter.lora.servers import Server, peft, tgi, vllm
from lorauter.lora.store import AdapterStore
from lorauter.lora.weights import read_weights
from lorauter.lora.write import write_adapter
from tests.budgets import tries

BASE_ID = "test/tiny"
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
IDS = torch.arange(3, 27).reshape(2, 12)
Weighted = Sequence[tuple[str, float]]


class Tiny:
    """A tiny random Llama in float32 and in float64, with a store of adapters and composites."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
        model: Any = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                scale = 1.0 if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5
                parameter.data = torch.randn(parameter.shape) * scale
        model.save_pretrained(root / "base")
        self.model = model.eval()
        self.exact: Any = LlamaForCausalLM(config).double().eval()
        self.exact.load_state_dict(model.state_dict())
        modules = read_modules(root / "base")
        self.base = Base(BASE_ID, "sha256:base", modules)
        self.root = root
        self.adapters = AdapterStore(root / "store")
        self.composites = CompositeStore(self.adapters)

    def random_adapter(self, rng: np.random.Generator, layers: Sequence[str] = LAYERS) -> str:
        """Stores an adapter of random shape, patterns and targets, not on all layers; returns its digest."""
        targets = tuple(sorted(rng.choice(layers, size=rng.integers(1, len(layers)), replace=False)))
        patterned = [f"layers.{rng.integers(3)}.self_attn.{name}" for name in targets if "self" not in name]
        config = AdapterConfig(
            BASE_ID,
            int(rng.integers(1, 65)),
            float(rng.integers(1, 65)),
            bool(rng.integers(2)),
            targets,
            {name: int(rng.integers(1, 65)) for name in patterned[: rng.integers(3)]},
            {name: float(rng.uniform(0.5, 32)) for name in patterned[: rng.integers(3)]},
        )
        without = f".{rng.integers(4)}."
        matrices = {}
        for module, (width, out) in self.base.modules.items():
            if without in module or not any(names_module(name, module) for name in targets):
                continue
            rank = module_rank(config, module)
            size = 0.5 / rank**0.5
            matrices[module] = (
                (rng.normal(size=(rank, width)) * size / width**0.5).astype(np.float32),
                (rng.normal(size=(out, rank)) * size).astype(np.float32),
            )
        write_adapter(self.root / "made", config, matrices)
        return self.adapters.admit(self.root / "made", self.base.modules).digest

    def compose(self, weighted: Weighted, server: Server, precision: Precision) -> Composite:
        return self.composites.ensure(make_recipe(self.base, weighted, server, precision))

    def sum(self, weighted: Weighted) -> torch.Tensor:
        """Logits of the base with the sum added to its weights, all in float64."""
        deltas = compose_delta([(w, read_weights(self.adapters.path(d))) for d, w in weighted])
        with added(self.exact, deltas), torch.no_grad():
            return self.exact(input_ids=IDS).logits

    def through_peft(self, folder: Path) -> torch.Tensor:
        """Logits of the base with an adapter that PEFT has loaded, what it warns about being an error."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            loaded = PeftModel.from_pretrained(self.model, folder)
        try:
            with torch.no_grad():
                return loaded(input_ids=IDS).logits
        finally:
            loaded.unload()


class added:  # noqa: N801 - reads as a word where it is used
    """Adds matrices to a model's weights for a block."""

    def __init__(self, model: Any, deltas: Mapping[str, np.ndarray]) -> None:
        self._changes = [(model.get_submodule(n).weight, torch.from_numpy(d)) for n, d in deltas.items()]
        self._before = [weight.data.clone() for weight, _ in self._changes]

    def __enter__(self) -> None:
        for weight, delta in self._changes:
            weight.data += delta

    def __exit__(self, *_: object) -> None:
        for change, before in zip(self._changes, self._before, strict=True):
            change[0].data = before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Tiny:
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    return Tiny(tmp_path_factory.mktemp("composites"))


@pytest.fixture(scope="module")
def pool(tiny) -> list[str]:
    rng = np.random.default_rng(11)
    return [tiny.random_adapter(rng) for _ in range(48)]


def random_set(rng: np.random.Generator, pool: Sequence[str]) -> Weighted:
    """1 to 8 adapters with weights of either sign, some of them 0, not all."""
    chosen = rng.choice(len(pool), size=rng.integers(1, 9), replace=False)
    weights = np.round(rng.normal(size=len(chosen)), 6)
    weights[1:][rng.random(len(chosen) - 1) < 0.15] = 0.0
    return [(pool[index], float(weight)) for index, weight in zip(chosen, weights, strict=True)]


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact).abs().max() / max(1.0, float(exact.abs().max())))


def test_random_sets_read_back_through_peft_are_the_float64_sum(tiny, pool) -> None:
    rng = np.random.default_rng(1)
    bare = tiny.sum([])
    errors, signals = [], []
    for _ in range(tries(200, 50)):
        weighted = random_set(rng, pool)
        exact = tiny.sum(weighted)
        composite = tiny.compose(weighted, peft(), "float32")
        errors.append(relative(tiny.through_peft(composite.folder), exact))
        signals.append(relative(exact, bare))
        assert composite.error == 0.0
    print(f"composites in float32: worst {max(errors):.1e}, median {np.median(errors):.1e}")
    assert np.median(signals) > 0.1, "the adapters change nothing"
    assert max(errors) <= 1e-4


def test_bfloat16_and_float16_differ_by_their_own_rounding_alone(tiny, pool) -> None:
    """Less than 2 roundings of every weight, 2**-9 and 2**-12 of it, can move what the adapters add."""
    for precision, step in (("bfloat16", 2**-8), ("float16", 2**-11)):
        rng = np.random.default_rng(2)
        errors, shares = [], []
        for _ in range(tries(40, 15)):
            weighted = random_set(rng, pool)
            exact = tiny.sum(weighted)
            errors.append(
                relative(tiny.through_peft(tiny.compose(weighted, peft(), precision).folder), exact)
            )
            shares.append(errors[-1] / max(relative(exact, tiny.sum([])), 0.1))
        print(f"composites in {precision}: worst {max(errors):.1e}, {max(shares):.1e} of what adapters add")
        assert step / 100 < max(shares) < 8 * step


@pytest.mark.parametrize("server", [vllm(256), tgi()], ids=["vllm", "tgi"])
def test_composites_padded_for_a_server_are_the_float64_sum_too(tiny, server) -> None:
    rng = np.random.default_rng(3)
    layers = LAYERS[:-1]
    for _ in range(10):
        weighted = [(tiny.random_adapter(rng, layers), w) for w in (0.7, -0.4)]
        composite = tiny.compose(weighted, server, "float32")
        assert composite.rank in server.ranks
        assert relative(tiny.through_peft(composite.folder), tiny.sum(weighted)) <= 1e-4


def test_a_truncation_that_loses_something_says_so(tiny, pool) -> None:
    weighted = [(pool[0], 1.0), (pool[1], 0.01), (pool[2], 0.01)]
    recipe = make_recipe(tiny.base, weighted, peft(), "float32", truncate_to=8)
    composite = tiny.composites.ensure(recipe)
    error = relative(tiny.through_peft(composite.folder), tiny.sum(weighted))
    assert composite.rank == 8
    print(f"truncated to rank 8: error {composite.error:.2f}, {error:.2f} of the logits")
    assert 0.01 < composite.error < 1
    assert 1e-4 < error < 1


def test_peft_warns_when_a_layer_that_is_named_is_missing(tiny, pool, tmp_path) -> None:
    """So that the silence above means something."""
    folder = tiny.compose([(pool[0], 0.5)], peft(), "float32").folder
    weights = load_file(folder / WEIGHTS_FILE)
    weights.pop(next(iter(weights)))
    shutil.copy(folder / CONFIG_FILE, tmp_path)
    save_file(weights, tmp_path / WEIGHTS_FILE)
    own = copy.copy(tiny)
    own.model = copy.deepcopy(tiny.model)
    with pytest.raises(UserWarning, match="missing"):
        own.through_peft(tmp_path)


def test_a_composite_is_the_float64_sum_when_layers_are_conv1d(tmp_path) -> None:
    """GPT-2 has a c_proj in attention and one of another shape behind it; PEFT transposes both by itself."""
    torch.manual_seed(6)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    model: Any = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = torch.randn(parameter.shape) * 0.2
    model.save_pretrained(tmp_path / "base")
    base = Base("test/gpt2", "sha256:gpt2", read_modules(tmp_path / "base"))
    store = AdapterStore(tmp_path / "store")
    rng = np.random.default_rng(7)
    weighted, deltas = [], []
    for number, (target, rank) in enumerate((("attn.c_proj", 3), ("c_attn", 5), ("mlp.c_proj", 2))):
        matrices = {
            name: (
                rng.normal(size=(rank, i)).astype(np.float32),
                rng.normal(size=(o, rank)).astype(np.float32),
            )
            for name, (i, o) in base.modules.items()
            if name.endswith(target)
        }
        write_adapter(tmp_path / target, AdapterConfig("b", rank, 0.1, False, (target,)), matrices)
        weighted.append((store.admit(tmp_path / target, base.modules).digest, 0.5 - number))
        deltas.append((weighted[-1][1], read_weights(tmp_path / target)))
    composite = CompositeStore(store).ensure(make_recipe(base, weighted, peft(), "float32"))
    exact: Any = GPT2LMHeadModel(config).double().eval()
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        bare = exact(input_ids=IDS).logits
    transposed = {name: delta.T.copy() for name, delta in compose_delta(deltas).items()}
    with added(exact, transposed), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        ours = PeftModel.from_pretrained(model, composite.folder)(input_ids=IDS).logits
        theirs = exact(input_ids=IDS).logits
    assert composite.rank == 5
    assert relative(theirs, bare) > 0.05
    assert relative(ours, theirs) <= 1e-4
