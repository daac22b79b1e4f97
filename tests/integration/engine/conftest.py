"""A tiny random Llama with a real tokenizer, adapters of every kind on it, and the engine around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lorauter.lora.check import read_modules
from lorauter.lora.config import AdapterConfig
from lorauter.lora.store import AdapterStore
from lorauter.lora.write import write_adapter
from lorauter_engine.model.network import Network, Placement
from lorauter_engine.model.plan import Concatenations
from lorauter_engine.model.tokenizer import TextCodec
from lorauter_engine.service.engine import Engine
from lorauter_engine.service.prepare import Preparation
from lorauter_engine.service.residency import Residency
from lorauter_engine.service.scheduler import Bounds, Scheduler

CPU = Placement(torch.device("cpu"), torch.float32)
BASE_ID = "test/tiny"
WORDS = "the cat sat on the mat and saw a dog that ran over hills far away from home today"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass(frozen=True, slots=True)
class Pool:
    """A base model's folder, a store, and the digests of its adapters by name."""

    base: Path
    store: AdapterStore
    adapters: Mapping[str, str]


@dataclass(slots=True)
class Parts:
    """An engine in this process, with its insides."""

    network: Network
    codec: TextCodec
    residency: Residency
    scheduler: Scheduler
    preparation: Preparation
    engine: Engine


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 8, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Random weights large enough that answers differ and logits have clear winners."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = 1.0 if "embed" in name or "wte" in name else 1.5 / parameter.shape[-1] ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    model.save_pretrained(folder)
    save_tokenizer(folder)


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lorauter-engine-") as folder:
        torch.set_num_threads(1)
        yield Path(folder)


@pytest.fixture(scope="session")
def llama_dir(workspace: Path) -> Path:
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    save_model(LlamaForCausalLM(config), workspace / "llama")
    return workspace / "llama"


@pytest.fixture(scope="session")
def gpt2_dir(workspace: Path) -> Path:
    config = GPT2Config(
        vocab_size=320, n_positions=128, n_embd=48, n_layer=2, n_head=4, eos_token_id=1, bos_token_id=1
    )
    save_model(GPT2LMHeadModel(config), workspace / "gpt2")
    return workspace / "gpt2"


def random_adapter(
    folder: Path, modules: Mapping[str, tuple[int, int]], config: AdapterConfig, seed: int, size: float = 0.3
) -> Path:
    """Writes an adapter on every module that the config names."""
    rng = np.random.default_rng(seed)
    matrices = {}
    for name, (width, out) in modules.items():
        if not any(name.endswith(f".{target}") or name == target for target in config.target_modules):
            continue
        rank = next((r for key, r in config.rank_pattern.items() if name.endswith(key)), config.rank)
        matrices[name] = (
            (rng.normal(size=(rank, width)) * size / width**0.5).astype(np.float32),
            (rng.normal(size=(out, rank)) * size).astype(np.float32),
        )
    write_adapter(folder, config, matrices)
    return folder


LLAMA_CONFIGS = {
    "plain": AdapterConfig(BASE_ID, 4, 8.0, False, ("q_proj", "v_proj")),
    "rslora": AdapterConfig(BASE_ID, 8, 6.0, True, ("gate_proj", "up_proj", "down_proj", "k_proj")),
    "patterned": AdapterConfig(
        BASE_ID, 3, 9.0, False, ("q_proj", "o_proj"), {"0.self_attn.q_proj": 2}, {"o_proj": 4.0}
    ),
    "wide": AdapterConfig(
        BASE_ID,
        16,
        16.0,
        False,
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "head": AdapterConfig(BASE_ID, 2, 4.0, False, ("lm_head", "v_proj")),
}


@pytest.fixture(scope="session")
def pool(workspace: Path, llama_dir: Path) -> Pool:
    store = AdapterStore(workspace / "store")
    modules = read_modules(llama_dir)
    adapters = {
        name: store.admit(random_adapter(workspace / "in" / name, modules, config, seed), modules).digest
        for seed, (name, config) in enumerate(LLAMA_CONFIGS.items())
    }
    return Pool(llama_dir, store, adapters)


class Residencies:
    """Makes residencies on networks of this process."""

    cpu = CPU
    random_adapter = staticmethod(random_adapter)

    def __call__(self, network: Network, store: AdapterStore, **bounds: int) -> Residency:
        given = {"max_bytes": 2**24, "max_count": 64, "max_rank": 64} | bounds
        return Residency(store, network.modules, network.placement, **given)


@pytest.fixture(scope="session")
def residencies() -> Residencies:
    return Residencies()


@contextmanager
def running_engine(
    pool: Pool, max_requests: int = 64, pass_tokens: int = 512, resident: int = 64, **bounds: int
) -> Iterator[Parts]:
    given = {
        "max_rows": 8,
        "reserved_rows": 2,
        "max_batch_tokens": 4096,
        "prefill_tokens": 256,
        "pass_tokens": 128,
        "max_waiting_rows": 64,
        "max_waiting_items": 512,
    } | bounds
    network, codec = Network(pool.base, CPU), TextCodec(pool.base)
    residency = Residencies()(network, pool.store, max_count=resident)
    scheduler = Scheduler(network, Concatenations(2**22), Bounds(**given), residency.release)
    engine = Engine(network, codec, residency, scheduler, max_requests, pass_tokens)
    preparation = Preparation(codec, network.context, 16)
    scheduler.start()
    try:
        yield Parts(network, codec, residency, scheduler, preparation, engine)
    finally:
        scheduler.stop()


@pytest.fixture(scope="session")
def parts(pool: Pool) -> Iterator[Parts]:
    with running_engine(pool) as made:
        yield made


@pytest.fixture(scope="session")
def launch(pool: Pool, workspace: Path) -> Callable[..., object]:
    """Starts engine processes on the pool: a context that yields the address."""

    @contextmanager
    def start(**settings: str) -> Iterator[str]:
        environment = {
            **os.environ,
            "LORAUTER_MODEL": str(pool.base),
            "LORAUTER_MODEL_ID": BASE_ID,
            "LORAUTER_ADAPTER_STORE": str(pool.store.root),
            "LORAUTER_LOG_LEVEL": "warning",
            "LORAUTER_DEVICE": "cpu",
            **settings,
        }
        command = [sys.executable, "-m", "lorauter_engine.main"]
        with (workspace / "engine.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield f"http://127.0.0.1:{ready['http_port']}"
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0

    return start


@pytest.fixture(scope="session")
def url(launch: Callable[..., object]) -> Iterator[str]:
    with launch() as address:  # type: ignore[attr-defined]
        yield address


def prompts(count: int, seed: int = 0) -> Sequence[str]:
    """Returns texts of 3 to 20 words."""
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    return [" ".join(rng.choice(words, size=rng.integers(3, 20))) for _ in range(count)]


@pytest.fixture(scope="session")
def engine_with(pool: Pool) -> Callable[..., object]:
    """Makes further engines with bounds of their own, on a pool: a context that yields Parts."""
    return lambda on=pool, **bounds: running_engine(on, **bounds)
