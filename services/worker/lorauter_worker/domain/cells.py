"""What a matching still has to measure: cells of tasks and arms, in batches of whole cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from lorauter.identifiers import BASE


@dataclass(frozen=True, slots=True, order=True)
class Arm:
    """An adapter's version, or the base (version 0, no digest), on which a task is measured."""

    adapter_id: str
    version: int
    digest: str = field(compare=False)

    @property
    def is_base(self) -> bool:
        """Whether this is the bare model."""
        return self.adapter_id == BASE

    @property
    def key(self) -> tuple[str, int]:
        """Adapter id and version."""
        return self.adapter_id, self.version


BASE_ARM = Arm(BASE, 0, "")


@dataclass(frozen=True, slots=True)
class Measured:
    """When, and against which metric and prompt, an arm was measured on a task's current version."""

    metric: str
    metric_version: int
    prompt_digest: str
    time: datetime


@dataclass(frozen=True, slots=True)
class MatchingTask:
    """A task as matching sees it; ``examples`` is how many of them are used."""

    task_id: str
    created: datetime
    """Tells a task from a deleted one of the same id, whose versions began at 1 too."""
    version: int
    metric: str
    metric_version: int
    prompt_digest: str
    examples: int
    state: str
    measured: Mapping[tuple[str, int], Measured]


@dataclass(frozen=True, slots=True)
class Scope:
    """What an operation asks for. Empty collections mean all; ``remeasure_before`` outdates cells."""

    task_ids: Collection[str] = ()
    adapter_ids: Collection[str] = ()
    remeasure_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """The arms that a task still lacks: adapters by id, the base last."""

    task: MatchingTask
    arms: tuple[Arm, ...]

    @property
    def evaluations(self) -> int:
        """Evaluations left: one for each arm and example."""
        return len(self.arms) * self.task.examples


def plan(tasks: Sequence[MatchingTask], adapters: Sequence[Arm], scope: Scope) -> list[TaskPlan]:
    """Returns what is left to measure, tasks that routing cannot use yet first."""
    chosen = [arm for arm in sorted(adapters) if not scope.adapter_ids or arm.adapter_id in scope.adapter_ids]
    plans = []
    for task in tasks:
        if task.examples == 0 or (scope.task_ids and task.task_id not in scope.task_ids):
            continue
        lacking = tuple(arm for arm in [*chosen, BASE_ARM] if _is_lacking(task, arm, scope))
        if lacking:
            plans.append(TaskPlan(task, lacking))
    return sorted(plans, key=lambda p: (BASE_ARM.key in p.task.measured, p.task.task_id))


def next_batch(plan: TaskPlan, most: int) -> tuple[Arm, ...]:
    """Returns the arms of the next batch: whole cells, at least one, at most ``most`` evaluations."""
    return plan.arms[: max(1, most // plan.task.examples)]


def _is_lacking(task: MatchingTask, arm: Arm, scope: Scope) -> bool:
    held = task.measured.get(arm.key)
    if held is None:
        return True
    if scope.remeasure_before is not None and held.time < scope.remeasure_before:
        return True
    wanted = (task.metric, task.metric_version, task.prompt_digest)
    return (held.metric, held.metric_version, held.prompt_digest) != wanted
