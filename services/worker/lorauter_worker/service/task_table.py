"""Reads a task as a matching sees it: its examples in the order of use, and what was measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlmodel import Session, col, select

from lorauter.errors import LorauterError
from lorauter.matching import Table, choosing_count, example_key
from lorauter.matching.model import Floats, Mask
from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec, PromptSpec, build_input
from lorauter.store.tables import Task, TaskVersion, ValidationExample
from lorauter_worker.domain.arms import Arm
from lorauter_worker.ports import Answer, Question, Scoring

_MEASURED = text(
    "SELECT digest, keys, scores, likelihoods, measure_time FROM measurement WHERE tenant = :tenant "
    "AND task_id = :task AND metric = :metric AND metric_version = :metric_version "
    "AND prompt_digest = :prompt AND digest = ANY(:digests)"
)
_IMPORTED = text(
    "SELECT adapter_id, adapter_version FROM affinity WHERE tenant = :tenant AND task_id = :task "
    "AND task_version = :version AND metric = :metric AND metric_version = :metric_version "
    "AND prompt_digest = :prompt AND imported"
)


Cell = tuple[int, int]
"""Row and example of a table."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question of a validation set with its answer."""

    key: int
    """lorauter.matching.example_key's."""
    input: str
    target: str


@dataclass(frozen=True, slots=True)
class MatchingTask:
    """A task's current version; ``examples`` are distinct and in the order of use."""

    tenant: str
    task_id: str
    created: datetime
    """Tells a task from a deleted one of the same id, whose versions began at 1 too."""
    version: int
    prompt_digest: str
    prompt: PromptSpec
    scoring: Scoring
    examples: tuple[Example, ...]

    def parameters(self) -> dict[str, Any]:
        """Returns what names the task, its version and how it is measured in a statement."""
        return {
            "tenant": self.tenant,
            "task": self.task_id,
            "created": self.created,
            "version": self.version,
            "metric": self.scoring.metric.name,
            "metric_version": self.scoring.metric.version,
            "prompt": self.prompt_digest,
        }


@dataclass(slots=True)
class TaskTable:
    """What was measured on a task; row by row of ``table`` one of ``arms``, the base first."""

    task: MatchingTask
    arms: tuple[Arm, ...]
    table: Table
    asked: Mask
    """Which arms the operation asks for; the others compete with what is known of them."""
    times: dict[str, datetime]
    """When each arm was measured last, by digest."""

    def questions(self, cells: Sequence[Cell]) -> list[Question]:
        """Returns what to ask for cells (row, example)."""
        inputs = {place: build_input(self.task.prompt, self.task.examples[place].input) for _, place in cells}
        return [
            Question(
                inputs[place],
                self.task.examples[place].target,
                self.arms[row].digest,
                tuple((member.digest, weight) for member, weight in self.arms[row].members),
            )
            for row, place in cells
        ]

    def fill_in(self, answers: Mapping[Cell, Answer]) -> None:
        """Writes what is known of the answers to their cells."""
        for cell, answer in answers.items():
            if not np.isnan(answer.score):
                self.table.scores[cell] = answer.score
            if not np.isnan(answer.likelihood):
                self.table.likelihoods[cell] = answer.likelihood

    def without(self, rows: Sequence[int]) -> TaskTable:
        """Returns the table without some adapters, which no longer compete."""
        keep = np.setdiff1d(np.arange(len(self.arms)), rows)
        table = replace(self.table, scores=self.table.scores[keep], likelihoods=self.table.likelihoods[keep])
        arms = tuple(self.arms[row] for row in keep)
        return TaskTable(self.task, arms, table, self.asked[keep], self.times)


def is_current(session: Session, task: MatchingTask) -> bool:
    """Returns whether a task is still as it was read."""
    row = session.get(Task, (task.tenant, task.task_id))
    return row is not None and (row.create_time, row.version) == (task.created, task.version)


def read_task(session: Session, tenant: str, task_id: str, most: int) -> MatchingTask | None:
    """Returns a task with at most ``most`` examples; None if it is gone, has none, or no known metric."""
    row = session.get(Task, (tenant, task_id))
    version = session.get(TaskVersion, (tenant, task_id, row.version)) if row else None
    if row is None or version is None:
        return None
    try:
        scoring = Scoring(metric(version.metric), GenerationSpec.from_json(row.generation_settings))
    except LorauterError:
        return None
    example = ValidationExample
    statement = select(example.input, example.target).where(
        example.tenant == tenant,
        col(example.task_id) == task_id,
        example.version == version.examples_version,
    )
    distinct = {example_key(*pair): Example(example_key(*pair), *pair) for pair in session.exec(statement)}
    if not distinct:
        return None
    return MatchingTask(
        tenant=tenant,
        task_id=task_id,
        created=row.create_time,
        version=version.version,
        prompt_digest=version.prompt_digest,
        prompt=PromptSpec.from_json(row.prompt),
        scoring=scoring,
        examples=tuple(distinct[key] for key in sorted(distinct)[:most]),
    )


def read_table(
    session: Session,
    task: MatchingTask,
    arms: Sequence[Arm],
    adapter_ids: Sequence[str] = (),
    since: datetime | None = None,
) -> TaskTable:
    """Returns what was measured of ``arms`` (the base among them) on a task.

    Of what is asked for, all or ``adapter_ids`` and the base, measurements older than ``since`` do not
    count. Arms with an imported affinity and no measurement are left out: there is nothing to compare.
    """
    base_first = sorted(arms, key=lambda arm: not arm.is_base)
    asked = {arm for arm in base_first if arm.is_base or not adapter_ids or arm.adapter_id in adapter_ids}
    rows = _measured(session, task, [arm.digest for arm in base_first])
    imported = set() if since else _imported(session, task)
    chosen = [
        arm
        for arm in base_first
        if arm.is_base or arm.digest in rows or (arm.adapter_id, arm.version) not in imported
    ]
    known = {
        arm.digest: row
        for arm in chosen
        if (row := rows.get(arm.digest)) and not (since and arm in asked and row.measure_time < since)
    }
    scores, likelihoods, times = _cells(task, chosen, known)
    table = Table(
        scores=scores,
        likelihoods=likelihoods,
        choosing=choosing_count(len(task.examples)),
        base=0,
        likelihood_first=task.scoring.metric.needs_generation,
    )
    return TaskTable(task, tuple(chosen), table, np.array([arm in asked for arm in chosen]), times)


def read_cells(
    session: Session, task: MatchingTask, arms: Sequence[Arm], since: datetime | None
) -> tuple[Floats, Floats, dict[str, datetime]]:
    """Returns scores and likelihoods (A, n), NaN where not measured since then, and when, by digest."""
    rows = _measured(session, task, [arm.digest for arm in arms])
    known = {key: row for key, row in rows.items() if since is None or row.measure_time >= since}
    return _cells(task, arms, known)


def _cells(
    task: MatchingTask, arms: Sequence[Arm], known: Mapping[str, Any]
) -> tuple[Floats, Floats, dict[str, datetime]]:
    scores, likelihoods = np.full((2, len(arms), len(task.examples)), np.nan)
    places = {example.key: place for place, example in enumerate(task.examples)}
    for row, arm in enumerate(arms):
        held = known.get(arm.digest)
        if held is None:
            continue
        for key, score, likelihood in zip(held.keys, held.scores, held.likelihoods, strict=True):
            if key in places:
                scores[row, places[key]] = score
                likelihoods[row, places[key]] = likelihood
    return scores, likelihoods, {digest: held.measure_time for digest, held in known.items()}


def _measured(session: Session, task: MatchingTask, digests: Sequence[str]) -> dict[str, Any]:
    values = {**task.parameters(), "digests": list(digests)}
    return {row.digest: row for row in session.connection().execute(_MEASURED, values)}


def _imported(session: Session, task: MatchingTask) -> set[tuple[str, int]]:
    rows = session.connection().execute(_IMPORTED, task.parameters())
    return {(row.adapter_id, row.adapter_version) for row in rows}
