"""Adapters over REST."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lorauter_registry.api.convert import checked
from lorauter_registry.api.rest.http import Reading, Writing
from lorauter_registry.domain.adapter_requests import (
    AdapterChange,
    AliasTarget,
    DisableAdapter,
    ListAdapters,
    ListAdapterVersions,
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
)
from lorauter_registry.domain.fields import PageRequest
from lorauter_registry.domain.requests import GetById
from lorauter_registry.domain.resources import Adapter

router = APIRouter()


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
