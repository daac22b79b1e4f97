"""What a noisy pool holds: a list of adapters, each described by its kind, its parents and one number."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from lorauter_suite.demo.data import CLUSTER_DOMAINS, TASKS
from lorauter_suite.demo.recipe import adapter_recipe
from lorauter_suite.demo.skills import seeded
from lorauter_suite.demo.verify import FROZEN_DIGEST

NOISY_VERSION = 1
"""Raised with every change of what the recipe makes: caches go by it."""


class Kind(StrEnum):
    """How an adapter came to be."""

    SHIPPED = "shipped"
    TRAINED = "trained"
    EARLY = "early"
    WRONG = "wrong"
    SCALED = "scaled"
    NOISED = "noised"
    DILUTED = "diluted"
    MIXED = "mixed"
    CROSSED = "crossed"
    RANDOM = "random"


AMOUNTS: dict[Kind, tuple[float, ...]] = {
    Kind.SCALED: (-1.0, -0.5, 0.25, 0.5, 0.75, 1.5, 2.0),
    Kind.NOISED: (0.5, 1.0, 2.0, 3.0),
    Kind.DILUTED: (0.9, 0.7, 0.5, 0.3),
    Kind.MIXED: (0.9, 0.7, 0.5),
    Kind.CROSSED: (1.0,),
    Kind.RANDOM: (1.0, 4.0, 16.0),
}
"""The numbers that each kind of derived adapter takes: a factor on the whole; the noise's size relative to
the weights'; the first parent's share (of a mix with noise, or with another adapter); a factor on noise."""

DERIVED = (
    *(Kind.RANDOM,) * 6,
    *(Kind.NOISED,) * 4,
    *(Kind.SCALED,) * 3,
    *(Kind.DILUTED,) * 2,
    *(Kind.MIXED,) * 3,
    *(Kind.CROSSED,) * 2,
)
"""The kinds of derived adapters, as often as each comes in 20."""


@dataclass(frozen=True, slots=True)
class Source:
    """Trained weights that adapters are made from.

    ``seed`` of its training, 0 for the shipped pool, and the ``step`` after which it was taken. ``task``
    names the task whose instructions it was trained on; ``answered`` the skill that it was taught there.
    """

    id: str
    task: str
    answered: str
    seed: int
    step: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class NoisyAdapter:
    """One adapter of a noisy pool: what it is made of is the truth about it.

    ``task`` is the task that its first parent was trained on, empty for random weights. ``parents`` are
    ids of sources; ``amount`` is one of AMOUNTS, and 1 for sources as they are.
    """

    id: str
    kind: Kind
    task: str
    parents: tuple[str, ...]
    amount: float


@dataclass(frozen=True, slots=True)
class NoisyRecipe:
    """Everything that decides what a noisy pool holds.

    ``trainings``: how many times all tasks are trained anew, each with a seed of its own, for
    ``checkpoints[-1]`` steps; 0 makes all adapters from the shipped ones.
    """

    count: int = 1536
    seed: int = 0
    trainings: int = 2
    checkpoints: tuple[int, ...] = (10, 20, 40, 80, 120)
    batch: int = 4

    def training_seeds(self) -> tuple[int, ...]:
        """The seeds of the trainings; 0 was the shipped pool's."""
        return tuple(1000 * (self.seed + 1) + i for i in range(self.trainings))

    def training_digest(self, seed: int) -> str:
        """SHA-256 over all that decides what the training with ``seed`` gives."""
        return _digest([NOISY_VERSION, FROZEN_DIGEST, seed, self.checkpoints, self.batch])

    def digest(self) -> str:
        """SHA-256 over all that decides what the pool holds."""
        return _digest([NOISY_VERSION, FROZEN_DIGEST, asdict(self)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def training_sources(recipe: NoisyRecipe, seed: int) -> list[Source]:
    """The sources of one training: every task's, and one a cluster that learns another cluster's answers."""
    clusters = tuple(CLUSTER_DOMAINS)
    last = recipe.checkpoints[-1]
    made = []
    for step in recipe.checkpoints:
        kind = Kind.TRAINED if step == last else Kind.EARLY
        for task in TASKS:
            made.append(Source(f"{task.id}-s{seed}-{step}", task.id, task.cluster, seed, step, kind))
        for place, cluster in enumerate(clusters):
            task_id = f"{cluster}-{CLUSTER_DOMAINS[cluster][seed % 3]}"
            wrong = clusters[(place + 1 + seed % (len(clusters) - 1)) % len(clusters)]
            made.append(
                Source(f"{task_id}-as-{wrong}-s{seed}-{step}", task_id, wrong, seed, step, Kind.WRONG)
            )
    return made


def shipped_sources() -> list[Source]:
    """The shipped adapters as sources."""
    clusters = {task.id: task.cluster for task in TASKS}
    return [
        Source(spec.id, spec.task, clusters[spec.task], 0, spec.steps, Kind.SHIPPED)
        for spec in adapter_recipe().specs
    ]


def all_sources(recipe: NoisyRecipe) -> list[Source]:
    """The shipped sources and those of all trainings."""
    trained = [source for seed in recipe.training_seeds() for source in training_sources(recipe, seed)]
    return shipped_sources() + trained


def noisy_adapters(recipe: NoisyRecipe) -> list[NoisyAdapter]:
    """The ``count`` adapters of the pool: the sources as they are, then what is derived from them."""
    sources = all_sources(recipe)
    parents = [source for source in sources if source.kind in (Kind.SHIPPED, Kind.TRAINED)]
    made = [
        NoisyAdapter(_name(i, source.kind), source.kind, source.task, (source.id,), 1.0)
        for i, source in enumerate(sources[: recipe.count])
    ]
    while len(made) < recipe.count:
        made.append(_derived(seeded("noisy", recipe.seed, len(made)), len(made), parents))
    return made


def _derived(rng: random.Random, place: int, parents: Sequence[Source]) -> NoisyAdapter:
    kind = DERIVED[place % len(DERIVED)]
    first, second = rng.sample(parents, 2)
    while second.task == first.task:
        second = rng.choice(parents)
    chosen = (first.id, second.id) if kind in (Kind.MIXED, Kind.CROSSED) else (first.id,)
    task = "" if kind is Kind.RANDOM else first.task
    return NoisyAdapter(_name(place, kind), kind, task, chosen, rng.choice(AMOUNTS[kind]))


def _name(place: int, kind: Kind) -> str:
    return f"noisy-{place:04}-{kind}"
