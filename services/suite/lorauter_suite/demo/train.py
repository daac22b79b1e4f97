"""Makes the demo pool from a seed: `python -m lorauter_suite.demo.train --out DIR`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from transformers import LlamaForCausalLM

from lorauter_suite.demo.adapters import train_adapters
from lorauter_suite.demo.base import Report, train_base
from lorauter_suite.demo.batches import Codec
from lorauter_suite.demo.data import TASKS, Example, task_examples
from lorauter_suite.demo.export import (
    export_adapter,
    export_base,
    export_figures,
    export_manifest,
    export_task,
    round_stack,
)
from lorauter_suite.demo.recipe import AdapterRecipe, BaseRecipe, adapter_recipe
from lorauter_suite.demo.score import adapters_right, base_right
from lorauter_suite.demo.skills import Split
from lorauter_suite.demo.stack import LoraStack
from lorauter_suite.demo.tokenizer import build_tokenizer

EXAMPLES_PER_SPLIT = 30
"""Validation examples, and test examples, of each task."""
JUDGED: tuple[Split, ...] = ("validation", "test")

Examples = Mapping[str, Mapping[str, Sequence[Example]]]
"""Examples by task and split."""


def draw_examples(seed: int, count: int = EXAMPLES_PER_SPLIT) -> dict[str, dict[str, list[Example]]]:
    """The validation and test examples of every task."""
    return {task.id: {split: task_examples(task, split, count, seed) for split in JUDGED} for task in TASKS}


def score_pool(
    model: LlamaForCausalLM, stack: LoraStack, codec: Codec, examples: Examples
) -> dict[str, dict[str, list[float]]]:
    """Exact match of the base and every adapter by split and task."""
    scores: dict[str, dict[str, list[float]]] = {split: {} for split in JUDGED}
    for task, by_split in examples.items():
        for split, rows in by_split.items():
            base = base_right(model, codec, rows).float().mean().item()
            adapters = adapters_right(model, stack, codec, rows).float().mean(1).tolist()
            scores[split][task] = [base, *adapters]
    return scores


def make_pool(
    out: Path, seed: int, base: BaseRecipe, adapters: AdapterRecipe, reports: tuple[Report, Report]
) -> str:
    """Trains, scores and writes a whole pool under `out`; returns its digest."""
    torch.set_num_threads(1)  # two threads on shared cores run slower than one, and one is deterministic
    codec = Codec(build_tokenizer())
    model = train_base(codec, base, seed, reports[0])
    stack = train_adapters(model, codec, adapters, seed, reports[1])
    round_stack(stack)
    examples = draw_examples(seed)
    scores = score_pool(model, stack, codec, examples)
    export_base(model, codec, out / "base")
    for index, spec in enumerate(stack.specs):
        export_adapter(stack, index, out / "adapters" / spec.id)
    for task in TASKS:
        export_task(task, examples[task.id], out / "tasks" / task.id)
    export_figures(stack.specs, scores, out / "figures.csv")
    return export_manifest(stack.specs, scores, seed, out)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pool; must be empty or not exist.")],
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Trains the demo's base model and adapters on one CPU core and writes them as a pool."""
    if out.exists() and any(out.iterdir()):
        raise typer.BadParameter(f"{out} is not empty")
    base, adapters = BaseRecipe(), adapter_recipe()
    with Progress() as progress:
        bars = (
            progress.add_task("base", total=base.steps),
            progress.add_task("adapters", total=max(spec.steps for spec in adapters.specs)),
        )

        def report_base(step: int, loss: float) -> None:
            progress.update(bars[0], advance=1, description=f"base, loss {loss:.3f}")

        def report_adapters(step: int, loss: float) -> None:
            progress.update(bars[1], advance=1, description=f"adapters, loss {loss:.3f}")

        digest = make_pool(out, seed, base, adapters, (report_base, report_adapters))
    typer.echo(f"pool digest {digest}")


if __name__ == "__main__":
    typer.run(main)
