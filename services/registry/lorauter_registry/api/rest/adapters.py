"""Adapters and affinities over REST."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from lorauter.errors import InvalidArgument
from lorauter_registry.api.convert import checked
from lorauter_registry.api.rest.http import Reading, Writing
from lorauter_registry.domain.adapter_requests import (
    AdapterChange,
    AliasTarget,
    DisableAdapter,
    ImportAffinities,
    ListAdapters,
    ListAdapterVersions,
    ListAffinities,
    Recall,
    RegisterAdapter,
    RetireAdapter,
    Retirement,
    SetAdapterAlias,
    UpdateAdapter,
)
from lorauter_registry.domain.answers import (
    AdapterList,
    AdapterVersionList,
    AffinityList,
    ImportedAffinities,
)
from lorauter_registry.domain.csv_import import read_affinities
from lorauter_registry.domain.fields import PageRequest
from lorauter_registry.domain.requests import GetById
from lorauter_registry.domain.resources import Adapter

router = APIRouter()

_IMPORT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/ImportAffinities"}},
            "text/csv": {
                "schema": {
                    "type": "string",
                    "description": "A header that names an affinity's fields, then one affinity a line.",
                }
            },
        },
    }
}


@router.post("/v1/adapters", status_code=201, tags=["adapters"])
async def register_adapter(body: RegisterAdapter, http: Writing) -> Adapter:
    """Registers an adapter, or a new version of one, from files that pass all checks."""
    return await http.write(http.registry.register_adapter, RegisterAdapter, body)


@router.get("/v1/adapters", tags=["adapters"])
async def list_adapters(query: Annotated[ListAdapters, Query()], http: Reading) -> AdapterList:
    """Lists adapters by id."""
    return await http.run(http.registry.list_adapters, query)


@router.get("/v1/adapters/{adapter_id}", tags=["adapters"])
async def get_adapter(adapter_id: str, http: Reading) -> Adapter:
    """Returns an adapter with its newest version."""
    return await http.read(http.registry.get_adapter, GetById, id=adapter_id)


@router.patch("/v1/adapters/{adapter_id}", tags=["adapters"])
async def update_adapter(adapter_id: str, body: AdapterChange, http: Writing) -> Adapter:
    """Changes an adapter. Absent fields stay as they are; given tags replace the old ones."""
    return await http.write(http.registry.update_adapter, UpdateAdapter, body, id=adapter_id)


@router.get("/v1/adapters/{adapter_id}/versions", tags=["adapters"])
async def list_adapter_versions(
    adapter_id: str, query: Annotated[PageRequest, Query()], http: Reading
) -> AdapterVersionList:
    """Lists an adapter's versions, newest first."""
    asked = checked(ListAdapterVersions, {**query.model_dump(), "id": adapter_id})
    return await http.run(http.registry.list_adapter_versions, asked)


@router.put("/v1/adapters/{adapter_id}/aliases/{alias}", tags=["adapters"])
async def set_adapter_alias(adapter_id: str, alias: str, body: AliasTarget, http: Writing) -> Adapter:
    """Makes an alias such as `champion` point to a version."""
    call = http.registry.set_adapter_alias
    return await http.write(call, SetAdapterAlias, body, id=adapter_id, alias=alias)


@router.delete("/v1/adapters/{adapter_id}/aliases/{alias}", tags=["adapters"])
async def remove_adapter_alias(adapter_id: str, alias: str, http: Writing) -> Adapter:
    """Removes an alias."""
    call = http.registry.set_adapter_alias
    return await http.write(call, SetAdapterAlias, id=adapter_id, alias=alias)


@router.post("/v1/adapters/{adapter_id}/retire", tags=["adapters"])
async def retire_adapter(adapter_id: str, http: Writing, body: Retirement | None = None) -> Adapter:
    """Takes a version, or all of them, out of new decisions; pins are served until `pins_until`."""
    return await http.write(http.registry.retire_adapter, RetireAdapter, body, id=adapter_id)


@router.post("/v1/adapters/{adapter_id}/disable", tags=["adapters"])
async def disable_adapter(adapter_id: str, body: Recall, http: Writing) -> Adapter:
    """Recalls a version, or all of them: refused everywhere with the next generation."""
    return await http.write(http.registry.disable_adapter, DisableAdapter, body, id=adapter_id)


@router.get("/v1/affinities", tags=["affinities"])
async def list_affinities(query: Annotated[ListAffinities, Query()], http: Reading) -> AffinityList:
    """Lists what was measured: scores of adapters on tasks."""
    return await http.run(http.registry.list_affinities, query)


@router.post("/v1/affinities", tags=["affinities"], openapi_extra=_IMPORT)
async def import_affinities(request: Request, http: Writing) -> ImportedAffinities:
    """Imports measured scores, as JSON or CSV. All of them are taken or none."""
    body = await request.body()
    if request.headers.get("content-type", "").split(";")[0].strip().lower() == "text/csv":
        asked = http.request(ImportAffinities, affinities=read_affinities(body))
    else:
        asked = http.request(ImportAffinities, checked(ImportAffinities, _object(body)))
    return await http.run(http.registry.import_affinities, asked)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("MALFORMED_JSON", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArgument("INVALID_FIELD", 'the body is not an object: send {"affinities": […]}')
    return value
