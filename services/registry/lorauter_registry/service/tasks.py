"""Tasks and their versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlmodel import Session, col, select

from lorauter.errors import AlreadyExists, InvalidArgument
from lorauter.identifiers import encode_generation
from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec, PromptSpec, prompt_digest
from lorauter.store import Write, tables
from lorauter_registry.domain.answers import DeletedTask, TaskList
from lorauter_registry.domain.requests import (
    CreateTask,
    DeleteTask,
    GenerationSettingsInput,
    GetById,
    ListTasks,
    PromptInput,
    UpdateTask,
)
from lorauter_registry.domain.resources import Task
from lorauter_registry.service.base import Part, check_etag, touch
from lorauter_registry.service.lifts import measured
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import task_of


class Tasks(Part):
    """Tasks and their versions."""

    def create_task(self, request: CreateTask) -> Task:
        """Creates a task without a validation set.

        Raises InvalidArgument (UNKNOWN_METRIC), NotFound (POOL_NOT_FOUND) or AlreadyExists (TASK_EXISTS).
        """
        metric(request.metric)

        def change(tx: Write) -> Task:
            self.existing(tx.session, tables.Pool, "pool", request.pool)
            if tx.session.get(tables.Task, (self.tenant, request.id)):
                raise AlreadyExists(
                    "TASK_EXISTS", f"task {request.id!r} exists: update it, or choose another id"
                )
            row = tables.Task(
                tenant=self.tenant,
                id=request.id,
                pool=request.pool,
                description=request.description,
                metric=request.metric,
                prompt=_prompt(request.prompt),
                generation_settings=_settings(request.generation_settings),
                tags=list(request.tags),
                generation=tx.generation,
                create_time=tx.now,
                update_time=tx.now,
            )
            tx.session.add(row)
            tx.owe("index", row.pool)
            return task_of(row)

        return self.changing(request, Task, change)

    def get_task(self, request: GetById) -> Task:
        """Returns a task; raises NotFound (TASK_NOT_FOUND)."""
        with self.reading() as session:
            return self.measured(session, [self.existing(session, tables.Task, "task", request.id)])[0]

    def list_tasks(self, request: ListTasks) -> TaskList:
        """Lists tasks by id; raises NotFound (POOL_NOT_FOUND)."""
        statement = select(tables.Task).where(tables.Task.tenant == self.tenant)
        with self.reading() as session:
            if request.pool:
                self.existing(session, tables.Pool, "pool", request.pool)
                statement = statement.where(tables.Task.pool == request.pool)
            tasks, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(tables.Task.id)],
                lambda rows: self.measured(session, rows),
            )
        return TaskList(tasks=tasks, next_page_token=token)

    def update_task(self, request: UpdateTask) -> Task:
        """Changes a task.

        Another metric, prompt or generation setting makes a new version on the same examples, which is
        measured again. Raises NotFound (TASK_NOT_FOUND), Conflict (ETAG_MISMATCH), or InvalidArgument
        (UNKNOWN_METRIC, or UNREADABLE_TARGET and others of check_targets()); then nothing changes.
        """
        if request.metric is not None:
            metric(request.metric)

        def change(tx: Write) -> Task:
            row = self.existing(tx.session, tables.Task, "task", request.id, lock=True)
            check_etag(row, request.etag)
            before = (row.metric, digest_of(row))
            _apply(request, row)
            if row.version and before != (row.metric, digest_of(row)):
                self._renew(tx, row, check=row.metric != before[0])
            touch(row, tx)
            tx.owe("index", row.pool)
            return self.measured(tx.session, [row])[0]

        return self.changing(request, Task, change)

    def delete_task(self, request: DeleteTask) -> DeletedTask:
        """Deletes a task with its versions, examples and affinities.

        Raises NotFound (TASK_NOT_FOUND) or Conflict (ETAG_MISMATCH).
        """

        def change(tx: Write) -> DeletedTask:
            row = self.existing(tx.session, tables.Task, "task", request.id, lock=True)
            check_etag(row, request.etag)
            tx.session.delete(row)
            tx.owe("index", row.pool)
            return DeletedTask(generation=encode_generation(tx.generation, tx.tenant))

        return self.changing(request, DeletedTask, change)

    def measured(self, session: Session, rows: Sequence[tables.Task]) -> list[Task]:
        """Returns the tasks of rows with what was measured on them."""
        scores = measured(session, self.tenant, rows)
        return [task_of(row, scores.get(row.id)) for row in rows]

    def _renew(self, tx: Write, row: tables.Task, check: bool) -> None:
        old = self.existing(tx.session, tables.TaskVersion, "task version", (row.id, row.version))
        if check:
            example = tables.ValidationExample
            statement = select(example.target).where(
                example.tenant == self.tenant,
                example.task_id == row.id,
                example.version == old.examples_version,
            )
            targets = statement.order_by(col(example.position)).execution_options(yield_per=1_000)
            check_targets(row.metric, tx.session.exec(targets))
        row.version += 1
        row.state = "REGISTERED"
        tx.session.add(
            tables.TaskVersion(
                tenant=self.tenant,
                task_id=row.id,
                version=row.version,
                metric=row.metric,
                prompt_digest=digest_of(row),
                examples_version=old.examples_version,
                examples_digest=old.examples_digest,
                example_count=old.example_count,
                create_time=tx.now,
            )
        )


def check_targets(name: str, targets: Iterable[str]) -> None:
    """Checks that a metric can read targets, which are given in their examples' order.

    Raises InvalidArgument (UNREADABLE_TARGET, UNKNOWN_METRIC, METRIC_CLASH, BROKEN_METRIC); the metadata
    ``example`` is the place of the first that it cannot read, counted from 1.
    """
    known = metric(name)
    for place, target in enumerate(targets, 1):
        try:
            known.check_target(target)
        except InvalidArgument as error:
            message = f"example {place}: {error.message}; nothing was changed"
            raise type(error)(error.reason, message, **{**error.metadata, "example": str(place)}) from error


def digest_of(row: tables.Task) -> str:
    """Returns the prompt digest of a task as it is now."""
    return prompt_digest(PromptSpec.from_json(row.prompt), GenerationSpec.from_json(row.generation_settings))


def _apply(request: UpdateTask, row: tables.Task) -> None:
    if request.description is not None:
        row.description = request.description
    if request.metric is not None:
        row.metric = request.metric
    if request.prompt is not None:
        row.prompt = _prompt(request.prompt)
    if request.generation_settings is not None:
        row.generation_settings = _settings(request.generation_settings)
    if request.replace_tags:
        row.tags = list(request.tags)


def _prompt(value: PromptInput) -> dict[str, str]:
    return PromptSpec.from_json(value.model_dump(mode="json")).to_json()


def _settings(value: GenerationSettingsInput) -> dict[str, Any]:
    return GenerationSpec.from_json(value.model_dump(mode="json")).to_json()
