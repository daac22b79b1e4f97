"""The lab's recipe: what is made anew, how often, and how much of it. Frozen before its first result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from lorauter_suite.demo.data import TASKS
from lorauter_suite.demo.recipe import AdapterRecipe, adapter_recipe
from lorauter_suite.demo.verify import FROZEN_DIGEST

VERSION = 1
"""Raised with every change of what a seed makes or how it is measured: caches go by it."""


@dataclass(frozen=True, slots=True)
class LabRecipe:
    """The demo pool's tasks and adapters, unabridged, on its frozen base.

    Each of ``seeds`` draws its own adapters (initial weights and training examples), ``validation`` examples
    a task and ``queries`` a task. The shipped pool is seed 0, so none of these has been seen before.
    """

    seeds: tuple[int, ...] = (11, 12, 13, 14)
    validation: int = 30
    queries: int = 60
    adapters: AdapterRecipe = field(default_factory=adapter_recipe)

    @property
    def steps(self) -> int:
        """Training steps of a seed; all adapters train side by side."""
        return max(spec.steps for spec in self.adapters.specs)

    @property
    def homes(self) -> tuple[int, ...]:
        """(A,) the row of the task that each adapter is trained on."""
        rows = {task.id: row for row, task in enumerate(TASKS)}
        return tuple(rows[spec.task] for spec in self.adapters.specs)

    @property
    def own(self) -> tuple[int, ...]:
        """(T,) each task's own adapter: the first that is trained on it, which is the fully trained one."""
        return tuple(self.homes.index(row) for row in range(len(TASKS)))

    def training_digest(self, seed: int) -> str:
        """Names what the training of ``seed`` makes."""
        return digest("training", FROZEN_DIGEST, asdict(self.adapters), seed)

    def measured_digest(self, seed: int) -> str:
        """Names what is measured on the pool of ``seed``."""
        return digest("measured", self.training_digest(seed), self.validation, self.queries)


def digest(*parts: object) -> str:
    """32 hexadecimal digits for ``parts``, values that JSON knows, and the version."""
    described = json.dumps([VERSION, *parts], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def task_ids() -> Sequence[str]:
    """(T,) the tasks' ids in order."""
    return tuple(task.id for task in TASKS)
