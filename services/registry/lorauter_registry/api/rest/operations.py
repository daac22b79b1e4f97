"""Operations, profiles and generations over REST."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from lorauter_registry.api.convert import checked
from lorauter_registry.api.rest.http import Reading, Writing
from lorauter_registry.domain.adapter_requests import ActivateProfile, GetGeneration, ListProfiles
from lorauter_registry.domain.answers import Generations, OperationList, ProfileList
from lorauter_registry.domain.fields import WriteRequest
from lorauter_registry.domain.operation_requests import CancelOperation, ListOperations, StartMatching
from lorauter_registry.domain.requests import GetById
from lorauter_registry.domain.resources import Operation, Profile

router = APIRouter()


@router.post("/v1/matchings", status_code=202, tags=["operations"])
async def start_matching(body: StartMatching, http: Writing) -> Operation:
    """Starts measuring adapters on tasks."""
    return await http.write(http.registry.start_matching, StartMatching, body)


@router.get("/v1/operations", tags=["operations"])
async def list_operations(query: Annotated[ListOperations, Query()], http: Reading) -> OperationList:
    """Lists operations, newest first."""
    return await http.run(http.registry.list_operations, query)


@router.get("/v1/operations/{operation_id}", tags=["operations"])
async def get_operation(operation_id: str, http: Reading) -> Operation:
    """Returns an operation."""
    return await http.read(http.registry.get_operation, GetById, id=operation_id)


@router.get(
    "/v1/operations/{operation_id}/events",
    tags=["operations"],
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "An `operation` event with the operation as JSON, at every change.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def watch_operation(operation_id: str, http: Reading) -> StreamingResponse:
    """Streams an operation at every change until it is done, as server-sent events."""
    operations = http.calls.watch(checked(GetById, {"id": operation_id}))
    # The first is awaited here, so that an unknown id is answered 404 and not by an empty stream.
    first = await anext(operations)
    return StreamingResponse(
        _events(first, operations), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


@router.post("/v1/operations/{operation_id}/cancel", tags=["operations"])
async def cancel_operation(operation_id: str, http: Writing, body: WriteRequest | None = None) -> Operation:
    """Asks an operation to stop. What it had measured is kept."""
    return await http.write(http.registry.cancel_operation, CancelOperation, body, id=operation_id)


@router.get("/v1/profiles", tags=["profiles"])
async def list_profiles(query: Annotated[ListProfiles, Query()], http: Reading) -> ProfileList:
    """Lists a pool's routing profiles, newest first."""
    return await http.run(http.registry.list_profiles, query)


@router.post("/v1/profiles/activate", tags=["profiles"])
async def activate_profile(body: ActivateProfile, http: Writing) -> Profile:
    """Restores an earlier profile's constants; with an empty digest lets them be fitted again."""
    return await http.write(http.registry.activate_profile, ActivateProfile, body)


@router.get("/v1/generation", tags=["generation"])
async def get_generation(http: Reading) -> Generations:
    """Returns the newest accepted generation and the newest published one."""
    return await http.read(http.registry.get_generation, GetGeneration)


async def _events(first: Operation, rest: AsyncIterator[Operation]) -> AsyncIterator[str]:
    yield _event(first)
    async for operation in rest:
        yield _event(operation)


def _event(operation: Operation) -> str:
    return f"event: operation\ndata: {operation.model_dump_json()}\n\n"
