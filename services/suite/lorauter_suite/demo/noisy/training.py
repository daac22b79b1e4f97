"""Trains the demo's tasks anew from other seeds, keeping checkpoints: several trainings side by side."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lorauter_suite.demo.adapters import grouped_steps
from lorauter_suite.demo.batches import disturb
from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.data import TASKS, Example, Task
from lorauter_suite.demo.noisy.recipe import NoisyRecipe, Source, training_sources
from lorauter_suite.demo.recipe import AdapterSpec, adapter_recipe
from lorauter_suite.demo.skills import SKILLS, draw_payload, seeded
from lorauter_suite.demo.stack import LoraStack, Site, new_stack
from lorauter_suite.demo.verify import POOL
from lorauter_suite.demo.wordings import draw_wording

Advance = Callable[[int], None]
"""Called now and then with the training steps done so far, over all trainings."""

LEARNING_RATE = 3e-3
_steps_done: Synchronized[int]


def trained_stacks(recipe: NoisyRecipe, cache: Path, advance: Advance) -> Mapping[tuple[int, int], LoraStack]:
    """Returns the adapters of every training by (seed, step); trains what ``cache`` does not hold.

    Two trainings run at once, each on one core.
    """
    cache.mkdir(parents=True, exist_ok=True)
    paths = {
        seed: cache / f"training-{recipe.training_digest(seed)[:32]}.safetensors"
        for seed in recipe.training_seeds()
    }
    missing = [seed for seed, path in paths.items() if not path.exists()]
    if missing:
        context = multiprocessing.get_context("spawn")
        done: Synchronized[int] = context.Value("i", 0)
        with context.Pool(min(2, len(missing)), _share, (done,)) as pool:
            result = pool.starmap_async(_train, [(recipe, seed, paths[seed]) for seed in missing])
            while not result.ready():
                result.wait(0.5)
                advance(done.value)
            result.get()
            pool.close()
            pool.join()
    return {key: stack for seed in paths for key, stack in _load(recipe, seed, paths[seed]).items()}


def _share(done: Synchronized[int]) -> None:
    global _steps_done
    _steps_done = done


def _train(recipe: NoisyRecipe, seed: int, path: Path) -> None:
    """Trains every task once and writes the weights at every checkpoint to ``path``, as float16."""
    torch.set_num_threads(1)
    pool = load_pool(POOL)
    final = [source for source in training_sources(recipe, seed) if source.step == recipe.checkpoints[-1]]
    stack = new_stack(pool.model, _specs(recipe, final), seed)
    tasks = {task.id: task for task in TASKS}
    streams = [(seeded(seed, source.id), tasks[source.task], source.answered) for source in final]

    def draw() -> list[Example]:
        return [_example(*stream) for stream in streams for _ in range(recipe.batch)]

    kept: dict[str, torch.Tensor] = {}
    for step, _ in enumerate(grouped_steps(pool.model, pool.codec, stack, draw, LEARNING_RATE), start=1):
        if step in recipe.checkpoints:
            for name, site in stack.sites.items():
                kept[f"{step}/{name}/down"] = site.down.detach().half()
                kept[f"{step}/{name}/up"] = site.up.detach().half()
        with _steps_done.get_lock():
            _steps_done.value += 1
    unfinished = path.with_suffix(".part")
    save_file(kept, unfinished)
    unfinished.replace(path)


def _example(rng: random.Random, task: Task, answered: str) -> Example:
    """An example of ``task``'s instructions, answered by the skill of cluster ``answered``."""
    payload = draw_payload(rng, task.domain, "train")
    wording = disturb(rng, draw_wording(rng, task.cluster, task.domain, "train"))
    return Example(wording.replace("{x}", payload), SKILLS[answered](payload))


def _specs(recipe: NoisyRecipe, sources: list[Source]) -> list[AdapterSpec]:
    """The shapes of the shipped adapters, one after the other."""
    shapes = adapter_recipe().specs[: len(TASKS)]
    return [
        replace(shapes[i % len(shapes)], id=source.id, task=source.task, steps=recipe.checkpoints[-1])
        for i, source in enumerate(sources)
    ]


def _load(recipe: NoisyRecipe, seed: int, path: Path) -> dict[tuple[int, int], LoraStack]:
    final = [source for source in training_sources(recipe, seed) if source.step == recipe.checkpoints[-1]]
    specs = _specs(recipe, final)
    tensors = load_file(path)
    names = {key.split("/")[1] for key in tensors}
    return {
        (seed, step): LoraStack(
            specs,
            {
                name: Site(tensors[f"{step}/{name}/down"].float(), tensors[f"{step}/{name}/up"].float())
                for name in names
            },
        )
        for step in recipe.checkpoints
    }
