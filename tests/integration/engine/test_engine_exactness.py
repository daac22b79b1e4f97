"""What every row gets is sum_i w_i s_i B_i A_i x, whatever stands beside it in the batch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lorauter.errors import LorauterError
from lorauter.lora.check import read_modules
from lorauter.lora.compose import compose_delta
from lorauter.lora.config import AdapterConfig
from lorauter.lora.store import AdapterStore
from lorauter.lora.weights import read_weights
from lorauter_engine.domain.values import Finish, Step
from lorauter_engine.model.network import Network
from lorauter_engine.model.plan import Concatenations, plan_batch
from lorauter_engine.service.batch import RunningBatch
from lorauter_engine.service.prepare import Wish
from lorauter_engine.service.residency import normalise
from lorauter_engine.service.rows import Row

WISH = Wish(max_new_tokens=1, is_quiet=True)
Weighted = Sequence[tuple[str, float]]


@lru_cache(maxsize=2)
def loaded(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager")


class Reference:
    """The base with a composition added to its weights, in float64."""

    def __init__(self, base: Path, store: AdapterStore, weighted: Weighted) -> None:
        model = copy.deepcopy(loaded(base))
        deltas = compose_delta([(weight, read_weights(store.path(digest))) for digest, weight in weighted])
        for name, delta in deltas.items():
            module = model.get_submodule(name)
            added = torch.from_numpy(delta)
            module.weight.data += added.T if isinstance(module, Conv1D) else added
        self._model = model

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Returns (tokens, vocabulary)."""
        logits: torch.Tensor = self._model(input_ids=torch.tensor([list(ids)])).logits[0]
        return logits


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    difference = (ours.double() - theirs).abs().max()
    return float(difference / max(1.0, float(theirs.abs().max())))


def check(
    base: Path, store: AdapterStore, sets: Sequence[Weighted], make_residency: Any, repeat: int
) -> None:
    """Runs all sets in one batch and compares every row with the float64 sum."""
    network = Network(base, make_residency.cpu)
    residency = make_residency(network, store)
    rng = np.random.default_rng(3)
    ids = [rng.integers(2, 250, size=rng.integers(4, 30)).tolist() for _ in sets for _ in range(repeat)]
    wanted = [weighted for weighted in sets for _ in range(repeat)]
    adapters = [residency.acquire(sorted(weighted)) for weighted in wanted]
    plan = plan_batch(adapters, max(map(len, ids)), Concatenations(2**20))
    logits = network.prefill(ids, plan, [range(len(row)) for row in ids], None)
    references = {key: Reference(base, store, key) for key in {(), *map(tuple, sets)}}
    errors = []
    for row, weighted, ours in zip(ids, wanted, logits.split([len(row) for row in ids]), strict=True):
        errors.append(relative(ours, references[tuple(weighted)].logits(row)))
        if weighted:
            assert relative(ours, references[()].logits(row)) > 1e-2, "the adapters change nothing"
    assert max(errors) < 1e-4, errors


def random_configs(targets: Sequence[str], count: int, seed: int) -> list[AdapterConfig]:
    """Ranks 1 to 64, every kind of scale, other targets each."""
    rng = np.random.default_rng(seed)
    configs = []
    for _ in range(count):
        chosen = tuple(sorted(rng.choice(targets, size=rng.integers(1, len(targets) + 1), replace=False)))
        own = {chosen[0]: int(rng.integers(1, 65))} if rng.random() < 0.3 else {}
        alphas = {chosen[-1]: float(rng.integers(1, 40))} if rng.random() < 0.3 else {}
        rank, alpha = int(rng.integers(1, 65)), float(rng.integers(1, 65))
        configs.append(AdapterConfig("b", rank, alpha, bool(rng.random() < 0.5), chosen, own, alphas))
    return configs


def random_sets(digests: Sequence[str], count: int, seed: int) -> list[Weighted]:
    """Sets of 1 to 8 adapters with positive, negative and zero weights."""
    rng = np.random.default_rng(seed)
    sets: list[Weighted] = []
    for _ in range(count):
        chosen = sorted(rng.choice(len(digests), size=rng.integers(1, 9), replace=False))
        weights = [0.0 if rng.random() < 0.1 else float(rng.normal()) / len(chosen) for _ in chosen]
        sets.append(sorted((digests[place], weight) for place, weight in zip(chosen, weights, strict=True)))
    return sets


def a_dozen_sets(adapters: Mapping[str, str]) -> list[Weighted]:
    d = adapters
    return [
        [],
        [(d["plain"], 1.0)],
        [(d["rslora"], -0.7)],
        [(d["plain"], 0.5), (d["rslora"], 0.3), (d["patterned"], 0.2)],
        [(d["patterned"], 2.5), (d["wide"], -1.5)],
        [(d["head"], 1.0), (d["rslora"], 0.25)],
    ]


def alike_sets(adapters: Mapping[str, str]) -> list[Weighted]:
    """Sets of like size, which stack without much padding."""
    plain, patterned = adapters["plain"], adapters["patterned"]
    return [
        [(plain, 0.5), (patterned, 0.9)],
        [(plain, 1.3)],
        [(plain, -0.4), (patterned, 1.1)],
        [(patterned, -0.8)],
    ]


@pytest.mark.parametrize("repeat", [1, 40])
def test_composition_equals_the_float64_sum_when_rows_are_mixed(pool, residencies, repeat) -> None:
    check(pool.base, pool.store, a_dozen_sets(pool.adapters), residencies, repeat)


def test_composition_equals_the_float64_sum_on_200_random_sets(llama_dir, tmp_path, residencies) -> None:
    store, modules = AdapterStore(tmp_path / "store"), read_modules(llama_dir)
    targets = sorted({name.rpartition(".")[2] for name in modules})
    digests = [
        store.admit(residencies.random_adapter(tmp_path / str(i), modules, config, i, 0.1), modules).digest
        for i, config in enumerate(random_configs(targets, 40, seed=0))
    ]
    network = Network(llama_dir, residencies.cpu)
    residency, rng = residencies(network, store), np.random.default_rng(1)
    sets = random_sets(digests, 200, seed=2)
    for start in range(0, 200, 40):
        batch = sets[start : start + 40]
        ids = [rng.integers(2, 250, size=rng.integers(4, 30)).tolist() for _ in batch]
        adapters = [residency.acquire(normalise(weighted, 8)) for weighted in batch]
        plan = plan_batch(adapters, max(map(len, ids)), Concatenations(2**24))
        found = network.prefill(ids, plan, [range(len(row)) for row in ids], None)
        for row, weighted, ours in zip(ids, batch, found.split([len(row) for row in ids]), strict=True):
            expected = Reference(llama_dir, store, weighted).logits(row)
            assert relative(ours, expected) < 1e-4, weighted


def test_both_layouts_are_used_when_batches_differ(pool, residencies) -> None:
    network = Network(pool.base, residencies.cpu)
    residency = residencies(network, pool.store)
    sets = [residency.acquire(((pool.adapters[name], 1.0),)) for name in ("plain", "wide")]
    union = plan_batch(sets, 1, Concatenations(2**20))
    split = plan_batch([s for s in sets for _ in range(500)], 50, Concatenations(2**20))
    name = "model.layers.0.self_attn.q_proj"
    assert union is not None
    assert split is not None
    assert [(part.start, part.end) for part in union.parts[name]] == [(0, 2)]
    assert [(part.start, part.end) for part in split.parts[name]] == [(0, 500), (500, 1000)]


def test_composition_equals_the_float64_sum_when_layers_are_conv1d(gpt2_dir, tmp_path, residencies) -> None:
    from lorauter_engine.model.layers import AdaptedLinear

    store = AdapterStore(tmp_path / "store")
    modules = read_modules(gpt2_dir)
    configs = [
        AdapterConfig("b", 4, 8.0, False, ("c_attn", "c_fc")),
        AdapterConfig("b", 2, 3.0, True, ("c_proj",)),
    ]
    digests = [
        store.admit(residencies.random_adapter(tmp_path / str(i), modules, c, i), modules).digest
        for i, c in enumerate(configs)
    ]
    network = Network(gpt2_dir, residencies.cpu)
    assert any(isinstance(m, AdaptedLinear) and isinstance(m.base, Conv1D) for m in network._model.modules())
    assert all(network.modules[name] == shape for name, shape in modules.items())
    sets: list[Weighted] = [[], [(digests[0], 0.6), (digests[1], -1.2)], [(digests[1], 1.0)]]
    check(gpt2_dir, store, sets, residencies, 1)


def test_composition_equals_the_float64_sum_on_the_demo_model(demo_pool, tmp_path, residencies) -> None:
    base = demo_pool / "base"
    modules = read_modules(base)
    store = AdapterStore(tmp_path / "store")
    configs = [
        AdapterConfig("b", 4, 8.0, False, ("q_proj", "v_proj")),
        AdapterConfig("b", 16, 8.0, True, ("gate_proj", "down_proj")),
        AdapterConfig("b", 7, 7.0, False, ("o_proj", "up_proj", "q_proj"), {"1.self_attn.q_proj": 3}),
    ]
    made = [
        store.admit(residencies.random_adapter(tmp_path / str(i), modules, c, i), modules).digest
        for i, c in enumerate(configs)
    ]
    shipped = [
        store.admit(folder, modules).digest for folder in sorted((demo_pool / "adapters").iterdir())[:3]
    ]
    sets: list[Weighted] = [
        [],
        [(made[0], 0.5), (made[1], 0.3), (made[2], 0.2)],
        [(digest, weight) for digest, weight in zip(shipped, (0.62, 0.38, -0.2), strict=True)],
        [(made[1], 1.0), (shipped[0], 0.5)],
    ]
    check(base, store, sets, residencies, 2)


def test_a_single_adapter_equals_peft(pool, residencies) -> None:
    from peft import PeftModel

    network = Network(pool.base, residencies.cpu)
    residency = residencies(network, pool.store)
    ids = list(range(10, 40))
    for name in ("plain", "rslora", "patterned", "wide"):
        plan = plan_batch([residency.acquire(((pool.adapters[name], 1.0),))], 30, Concatenations(2**20))
        ours = network.prefill([ids], plan, [range(30)], None)
        model = AutoModelForCausalLM.from_pretrained(pool.base, dtype=torch.float32)
        peft = PeftModel.from_pretrained(model, pool.store.path(pool.adapters[name]))
        with torch.no_grad():
            theirs = peft(input_ids=torch.tensor([ids])).logits[0]
        assert relative(ours, theirs.double()) < 1e-4, name


@pytest.mark.parametrize("layout", ["union", "stacks"])
def test_cached_decoding_equals_whole_passes_when_rows_come_and_go(
    pool, parts, residencies, monkeypatch, layout
) -> None:
    """Rows of other lengths and adapters join and leave between the steps of the one that is watched."""
    if layout == "stacks":
        # Small layers are laid out so only if a union seems dear.
        monkeypatch.setattr("lorauter_engine.model.plan.SEGMENT_FLOPS", -1e12)
    network = Network(pool.base, residencies.cpu)
    residency = residencies(network, pool.store)
    known = Concatenations(2**20)
    batch = RunningBatch(network, known, lambda row: residency.release(row.adapters))
    said: dict[int, list[int]] = {}
    finishes: dict[int, Finish] = {}
    chosen = alike_sets(pool.adapters) if layout == "stacks" else a_dozen_sets(pool.adapters)
    sets = [tuple(sorted(weighted)) for weighted in chosen]
    rng = np.random.default_rng(5)

    def row(number: int) -> Row:
        ids = rng.integers(2, 250, size=rng.integers(2, 70)).tolist()
        wish = dataclasses.replace(parts.preparation.job("the", WISH), prompt_ids=ids)
        job = dataclasses.replace(
            wish, adapters=sets[number % len(sets)], max_new_tokens=int(rng.integers(1, 30))
        )

        def take(event: Step | LorauterError) -> None:
            assert isinstance(event, Step)
            said.setdefault(number, []).append(event.token.id)
            if event.finish:
                finishes[number] = event.finish

        return Row(job, residency.acquire(job.adapters), parts.codec, frozenset(), take)

    rows = [row(number) for number in range(14)]
    waiting = list(rows)
    layouts = set()
    with torch.inference_mode():
        while waiting or batch.rows:
            batch.admit([waiting.pop(0) for _ in range(min(5, len(waiting)))]) if waiting else None
            if batch.rows:
                batch.step()
                if batch._plan is not None:
                    layouts |= (
                        {"stacks"} if batch._plan.stacks else {"union"} if batch._plan.is_union else set()
                    )
    assert layout in layouts
    assert len(finishes) == 14
    for number, each in enumerate(rows):
        alone = greedy_without_cache(network, residency.acquire(each.job.adapters), each.job, known)
        assert said[number] == alone, number


def greedy_without_cache(network: Network, adapters: Any, job: Any, known: Concatenations) -> list[int]:
    ids = list(job.prompt_ids)
    for _ in range(job.max_new_tokens):
        plan = plan_batch([adapters], len(ids), known)
        logits = network.prefill([ids], plan, [range(len(ids) - 1, len(ids))], None)
        ids.append(int(logits[0].argmax()))
    return ids[len(job.prompt_ids) :]
