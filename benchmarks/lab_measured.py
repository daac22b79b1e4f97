"""Measures a seed's pool: every arm on every validation example and every query, and all texts' vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab_recipe import LabRecipe, digest
from benchmarks.meter import Floats, Meter
from lorauter.encoder import DEFAULT_ENCODER, Encoder, load_encoder
from lorauter_suite.demo.check import Loaded
from lorauter_suite.demo.data import TASKS, Example, task_examples
from lorauter_suite.demo.noisy.weights import Lora
from lorauter_suite.demo.skills import Split
from lorauter_suite.demo.stack import LoraStack

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """All that can be known of a seed's pool: T tasks, A adapters and the base as arm A, in the last row.

    ``scores`` and ``likelihoods``: float64 (T, A + 1, n) on the validation examples, exact match, 0 or 1, and
    the mean log-likelihood of the target's tokens. ``right``: float64 (T, A + 1, q), exact match on the
    queries. ``validation`` (T, n, d) and ``queries`` (T, q, d): float32 unit vectors of the inputs.
    """

    scores: Floats
    likelihoods: Floats
    right: Floats
    validation: Vectors
    queries: Vectors

    @property
    def base(self) -> int:
        """The base's row."""
        return int(self.scores.shape[1]) - 1


def lab_examples(recipe: LabRecipe, seed: int, split: Split) -> list[list[Example]]:
    """Returns, task by task, the validation examples of ``seed``, or its queries: split ``test``.

    No wording, and no thing asked about, stands in both or in training.
    """
    count = recipe.validation if split == "validation" else recipe.queries
    return [task_examples(task, split, count, seed) for task in TASKS]


def measured_pool(
    recipe: LabRecipe, seed: int, loaded: Loaded, stack: LoraStack, cache: Path, advance: Callable[[], None]
) -> Measured:
    """Returns what the pool of ``seed`` does, from ``cache`` where it is there; ``advance``: once an arm."""
    encoder = load_encoder(DEFAULT_ENCODER)
    path = cache / f"measured-{digest(recipe.measured_digest(seed), encoder.digest)}.npz"
    if not path.exists():
        found = _measure(recipe, seed, loaded, stack, encoder, advance)
        unfinished = path.with_suffix(".part.npz")
        np.savez_compressed(unfinished, allow_pickle=False, **found)
        unfinished.replace(path)
    with np.load(path) as file:
        return Measured(**{field.name: file[field.name] for field in fields(Measured)})


def _measure(
    recipe: LabRecipe,
    seed: int,
    loaded: Loaded,
    stack: LoraStack,
    encoder: Encoder,
    advance: Callable[[], None],
) -> Mapping[str, NDArray[np.generic]]:
    splits = [lab_examples(recipe, seed, split) for split in ("validation", "test")]
    flat = [example for tasks in splits for examples in tasks for example in examples]
    meter = Meter(loaded.model, loaded.codec, flat)
    arms: Sequence[Lora | None] = [*(lora(stack, place) for place in range(len(stack.specs))), None]
    rows = []
    for arm in arms:
        rows.append(meter.measure(arm))
        advance()
    border = len(TASKS) * recipe.validation
    scores, likelihoods = (np.stack(values) for values in zip(*rows, strict=True))

    def by_task(values: Floats, count: int) -> Floats:
        return values.reshape(len(arms), len(TASKS), count).swapaxes(0, 1)

    vectors = encoder.encode([example.input for example in flat])
    return {
        "scores": by_task(scores[:, :border], recipe.validation),
        "likelihoods": by_task(likelihoods[:, :border], recipe.validation),
        "right": by_task(scores[:, border:], recipe.queries),
        "validation": vectors[:border].reshape(len(TASKS), recipe.validation, -1),
        "queries": vectors[border:].reshape(len(TASKS), recipe.queries, -1),
    }


def lora(stack: LoraStack, place: int) -> Lora:
    """Returns one adapter of ``stack``, with its scale in B."""
    spec = stack.specs[place]
    return Lora(
        {
            name: (site.down[place, : spec.rank], site.up[place, :, : spec.rank] * spec.scale)
            for name, site in stack.sites.items()
            if name.rpartition(".")[2] in spec.targets
        }
    )
