"""Tasks and validation sets over REST."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.requests import ClientDisconnect

from lorauter.errors import InvalidArgument
from lorauter_registry.api.convert import checked
from lorauter_registry.api.rest.http import Reading, Writing
from lorauter_registry.domain.answers import DeletedTask, TaskList, ValidationExampleList
from lorauter_registry.domain.examples import ExampleSet, JsonLines
from lorauter_registry.domain.fields import PageRequest, Version
from lorauter_registry.domain.requests import (
    CreateTask,
    DeleteTask,
    GetById,
    ListTasks,
    ListValidationExamples,
    PutValidationSet,
    TaskChange,
    UpdateTask,
)
from lorauter_registry.domain.resources import Task

router = APIRouter(tags=["tasks"])

_JSONL: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {
                    "type": "string",
                    "description": 'One `{"input": "…", "target": "…"}` a line, 1 to 100,000 lines.',
                }
            }
        },
    }
}


class ExamplesPage(PageRequest):
    """Asks for a page of validation examples."""

    version: Version = 0


@router.post("/v1/tasks", status_code=201)
async def create_task(body: CreateTask, http: Writing) -> Task:
    """Creates a task. It is routed to once it has a validation set."""
    return await http.write(http.registry.create_task, CreateTask, body)


@router.get("/v1/tasks")
async def list_tasks(query: Annotated[ListTasks, Query()], http: Reading) -> TaskList:
    """Lists tasks by id."""
    return await http.run(http.registry.list_tasks, query)


@router.get("/v1/tasks/{task_id}")
async def get_task(task_id: str, http: Reading) -> Task:
    """Returns a task."""
    return await http.read(http.registry.get_task, GetById, id=task_id)


@router.patch("/v1/tasks/{task_id}")
async def update_task(task_id: str, body: TaskChange, http: Writing) -> Task:
    """Changes a task. Absent fields stay as they are; given tags replace the old ones.

    Another metric, prompt or generation setting makes a new version, which is measured again.
    """
    return await http.write(http.registry.update_task, UpdateTask, body, id=task_id)


@router.delete("/v1/tasks/{task_id}")
async def delete_task(task_id: str, http: Writing) -> DeletedTask:
    """Deletes a task with its validation sets and affinities."""
    return await http.write(http.registry.delete_task, DeleteTask, id=task_id)


@router.put("/v1/tasks/{task_id}/validation-set", openapi_extra=_JSONL)
async def put_validation_set(task_id: str, request: Request, http: Writing) -> Task:
    """Replaces a task's validation set as a whole and makes a new version. On any error nothing changes."""
    asked = http.request(PutValidationSet, task_id=task_id)
    lines = JsonLines(ExampleSet(request.app.state.max_validation_set_bytes))
    try:
        async for piece in request.stream():
            lines.feed(piece)
    except ClientDisconnect:
        raise InvalidArgument("BODY_CUT_SHORT", "the body ended before its end: send it again") from None
    return await http.run(http.registry.put_validation_set, asked, lines.finish())


@router.get("/v1/tasks/{task_id}/validation-set")
async def list_validation_examples(
    task_id: str, query: Annotated[ExamplesPage, Query()], http: Reading
) -> ValidationExampleList:
    """Lists the examples of a task's version in their order."""
    asked = checked(ListValidationExamples, {**query.model_dump(), "task_id": task_id})
    return await http.run(http.registry.list_validation_examples, asked)
