"""Reads the examples of a batch of cells as questions to an evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlmodel import col, select

from lorauter.errors import Conflict
from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec, PromptSpec, build_input
from lorauter.store import read
from lorauter.store.tables import Task, TaskVersion, ValidationExample
from lorauter_worker.domain.cells import Arm, MatchingTask
from lorauter_worker.domain.spacing import spaced
from lorauter_worker.ports import Question, Refused, Scoring


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions with the arm and position that each belongs to."""

    places: Sequence[tuple[Arm, int]]
    questions: Sequence[Question]
    scoring: Scoring

    def by_arm(self, results: Sequence[float | Refused]) -> Mapping[Arm, list[float]]:
        """Returns the scores of each arm in the examples' order, refusals left out."""
        scores: dict[Arm, list[float]] = {}
        for (arm, _), result in zip(self.places, results, strict=True):
            if not isinstance(result, Refused):
                scores.setdefault(arm, []).append(result)
        return scores


def read_batch(engine: Engine, tenant: str, task: MatchingTask, arms: Sequence[Arm]) -> Batch:
    """Returns the questions of whole cells, cell by cell.

    Raises Conflict (TASK_CHANGED) if the task was deleted or replaced since it was planned.
    """
    with read(engine) as session:
        row = session.get(Task, (tenant, task.task_id))
        version = session.get(TaskVersion, (tenant, task.task_id, task.version))
        if row is None or version is None or (row.create_time, row.version) != (task.created, task.version):
            raise _changed(task)
        example = ValidationExample
        statement = (
            select(example.position, example.input, example.target)
            .where(
                example.tenant == tenant,
                example.task_id == task.task_id,
                example.version == version.examples_version,
                col(example.position).in_(spaced(version.example_count, task.examples)),
            )
            .order_by(col(example.position))
        )
        examples = session.exec(statement).all()
    if not examples:
        raise _changed(task)
    prompt = PromptSpec.from_json(row.prompt)
    built = [(position, build_input(prompt, text), target) for position, text, target in examples]
    places = [(arm, position) for arm in arms for position, _, _ in built]
    questions = [Question(text, target, arm.digest) for arm in arms for _, text, target in built]
    scoring = Scoring(metric(task.metric), GenerationSpec.from_json(row.generation_settings))
    return Batch(places, questions, scoring)


def _changed(task: MatchingTask) -> Conflict:
    return Conflict(
        "TASK_CHANGED",
        f"task {task.task_id!r} is no longer at version {task.version} with examples: plan again",
        task=task.task_id,
    )
