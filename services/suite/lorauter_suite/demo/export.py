"""Writes a trained pool as files: base, PEFT adapters, tasks, figures and the manifest pool.json."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from lorauter_suite.demo.batches import Codec
from lorauter_suite.demo.data import TASKS, Example, Task
from lorauter_suite.demo.digests import file_digests, pool_digest
from lorauter_suite.demo.recipe import BASE_ID, RECIPE_VERSION, AdapterSpec
from lorauter_suite.demo.stack import LoraStack
from lorauter_suite.demo.tokenizer import EOS, PAD, save_tokenizer

MAX_NEW_TOKENS = 32
"""Longer than any right answer of the demo (18 tokens with its marker and end)."""
Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Exact match by split, task and arm: the base first, then the adapters in their order."""


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """`weights` as a safetensors file that everyone may read."""
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_json(path: Path, value: Any) -> None:
    """`value` as readable JSON with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def export_base(model: LlamaForCausalLM, codec: Codec, directory: Path) -> None:
    """The base as transformers, TGI and vLLM load it: float16 weights that are meant to be run in float32."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    del weights["lm_head.weight"]  # tied to the embedding
    write_weights(directory / "model.safetensors", weights)
    config = model.config.to_dict()
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32", "torch_dtype": "float32"}
    config.pop("_name_or_path", None)
    write_json(directory / "config.json", dict(sorted(config.items())))
    generation = {
        "eos_token_id": codec.special(EOS),
        "pad_token_id": codec.special(PAD),
        "do_sample": False,
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    write_json(directory / "generation_config.json", generation)
    save_tokenizer(codec.tokenizer, directory)


def stored(weight: Tensor, spec: AdapterSpec) -> Tensor:
    """`weight` in the type that `spec` is stored in."""
    return weight.to(torch.float16 if spec.half else torch.float32).contiguous()


def export_adapter(stack: LoraStack, index: int, directory: Path) -> None:
    """One adapter in PEFT's format."""
    spec = stack.specs[index]
    directory.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    for name, site in stack.sites.items():
        if name.rpartition(".")[2] in spec.targets:
            weights[f"base_model.model.{name}.lora_A.weight"] = stored(site.down[index, : spec.rank], spec)
            weights[f"base_model.model.{name}.lora_B.weight"] = stored(site.up[index, :, : spec.rank], spec)
    write_weights(directory / "adapter_model.safetensors", weights)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE_ID,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "use_rslora": spec.rslora,
        "target_modules": list(spec.targets),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(directory / "adapter_config.json", config)


def round_stack(stack: LoraStack) -> None:
    """Rounds every adapter in place to what its file will hold, so that scores are those of the files."""
    for site in stack.sites.values():
        for index, spec in enumerate(stack.specs):
            site.down[index] = stored(site.down[index], spec).float()
            site.up[index] = stored(site.up[index], spec).float()


def export_task(task: Task, examples: Mapping[str, Sequence[Example]], directory: Path) -> None:
    """One task with its validation and test examples."""
    fields = {"id": task.id, "description": task.description, "cluster": task.cluster}
    settings = {"metric": "exact_match", "max_new_tokens": MAX_NEW_TOKENS, "stop": []}
    write_json(directory / "task.json", fields | settings)
    for split, rows in examples.items():
        lines = (json.dumps(example._asdict(), ensure_ascii=False) for example in rows)
        (directory / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines))


def export_figures(specs: Sequence[AdapterSpec], scores: Scores, path: Path) -> None:
    """The affinity tables: a row for each split and task, a column for the base and each adapter."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["split", "task", "base", *(spec.id for spec in specs)])
        for split, by_task in scores.items():
            for task, row in by_task.items():
                writer.writerow([split, task, *(f"{score:.4f}" for score in row)])


def export_manifest(specs: Sequence[AdapterSpec], scores: Scores, seed: int, root: Path) -> str:
    """Writes pool.json over the files under `root`; returns the pool's digest."""
    test = scores["test"]
    arms = ["base", *(spec.id for spec in specs)]
    columns = {arm: {task: round(row[i], 4) for task, row in test.items()} for i, arm in enumerate(arms)}
    adapters = [
        {
            "id": spec.id,
            "task": spec.task,
            "note": spec.note,
            "rank": spec.rank,
            "alpha": spec.alpha,
            "use_rslora": spec.rslora,
            "target_modules": list(spec.targets),
            "steps": spec.steps,
            "dtype": "float16" if spec.half else "float32",
            "test_exact_match": columns[spec.id],
        }
        for spec in specs
    ]
    tasks = [{"id": task.id, "cluster": task.cluster, "description": task.description} for task in TASKS]
    files = file_digests(root)
    digest = pool_digest(files)
    base = {
        "id": BASE_ID,
        "revision": f"recipe-{RECIPE_VERSION}-seed-{seed}",
        "test_exact_match": columns["base"],
    }
    header = {"recipe_version": RECIPE_VERSION, "seed": seed, "digest": digest, "base": base}
    write_json(root / "pool.json", header | {"adapters": adapters, "tasks": tasks, "files": files})
    return digest
