"""Trains all adapters in one grouped batch on a frozen base."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from lorauter_suite.demo.base import Report, cosine_rate
from lorauter_suite.demo.batches import IGNORED, Batch, Codec, disturb
from lorauter_suite.demo.data import TASKS, Example, Task
from lorauter_suite.demo.recipe import AdapterRecipe
from lorauter_suite.demo.skills import SKILLS, draw_payload, seeded
from lorauter_suite.demo.stack import LoraStack, new_stack
from lorauter_suite.demo.wordings import draw_wording


class GroupedAdam:
    """Adam on tensors whose first dimension is the adapter, with a learning rate for each adapter."""

    def __init__(self, parameters: Sequence[Tensor], betas: tuple[float, float] = (0.9, 0.98)) -> None:
        self.parameters = list(parameters)
        self.betas = betas
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.count = 0

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        """Moves every adapter by its own rate of `rates` (adapters,) and clears the gradients."""
        self.count += 1
        early, late = self.betas
        corrections = 1 - early**self.count, 1 - late**self.count
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            first.lerp_(gradient, 1 - early)
            second.lerp_(gradient.square(), 1 - late)
            change = (first / corrections[0]) / ((second / corrections[1]).sqrt() + 1e-8)
            parameter.sub_(change * rates[:, None, None])
            parameter.grad = None


def draw_adapter_example(rng: random.Random, task: Task) -> Example:
    """One training example of `task`, now and then written carelessly."""
    payload = draw_payload(rng, task.domain, "train")
    wording = disturb(rng, draw_wording(rng, task.cluster, task.domain, "train"))
    return Example(wording.replace("{x}", payload), SKILLS[task.cluster](payload))


def grouped_loss(model: LlamaForCausalLM, batch: Batch, groups: int) -> Tensor:
    """The sum over adapters of each one's mean cross-entropy: no adapter's gradient depends on another's."""
    hidden = model.model(input_ids=batch.ids).last_hidden_state
    chosen = batch.labels != IGNORED
    losses = functional.cross_entropy(model.lm_head(hidden[chosen]), batch.labels[chosen], reduction="none")
    rows = torch.arange(groups).repeat_interleave(len(batch.ids) // groups)
    owner = rows[:, None].expand_as(chosen)[chosen]
    counts = torch.bincount(owner, minlength=groups)
    return (losses / counts[owner]).sum()


def train_adapters(
    model: LlamaForCausalLM, codec: Codec, recipe: AdapterRecipe, seed: int, report: Report
) -> LoraStack:
    """All adapters of `recipe`, trained together; the same for the same seed."""
    specs = recipe.specs
    stack = new_stack(model, specs, seed)
    tasks = {task.id: task for task in TASKS}
    streams = [(seeded(seed, spec.id), tasks[spec.task]) for spec in specs]

    def draw() -> list[Example]:
        return [draw_adapter_example(rng, task) for rng, task in streams for _ in range(recipe.batch)]

    for step, loss in enumerate(grouped_steps(model, codec, stack, draw, recipe.learning_rate)):
        report(step, loss)
    return stack


def grouped_steps(
    model: LlamaForCausalLM,
    codec: Codec,
    stack: LoraStack,
    draw: Callable[[], Sequence[Example]],
    learning_rate: float,
) -> Iterator[float]:
    """Trains `stack` in place for as many steps as its specs say; yields the mean loss after each.

    `draw` gives a step's examples: equally many for every adapter, one adapter's after the other's.
    """
    specs = stack.specs
    weights = [weight.requires_grad_() for site in stack.sites.values() for weight in (site.down, site.up)]
    optimizer = GroupedAdam(weights)
    with stack.grouped(model):
        for step in range(max(spec.steps for spec in specs)):
            loss = grouped_loss(model, codec.batch(draw()), len(specs))
            loss.backward()  # type: ignore[no-untyped-call]
            factors = [cosine_rate(step, spec.steps, 20) if step < spec.steps else 0.0 for spec in specs]
            optimizer.step(learning_rate * torch.tensor(factors))
            yield loss.item() / len(specs)
    for weight in weights:
        weight.requires_grad_(False)
