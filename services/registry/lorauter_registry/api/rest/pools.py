"""Pools and backends over REST."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lorauter_registry.api.rest.http import Reading, Writing
from lorauter_registry.domain.answers import BackendList, PoolList
from lorauter_registry.domain.fields import Change
from lorauter_registry.domain.requests import (
    BackendInput,
    CreatePool,
    DrainBackend,
    GetById,
    ListBackends,
    ListPools,
    PoolChange,
    RegisterBackend,
    UpdatePool,
)
from lorauter_registry.domain.resources import Backend, Pool

router = APIRouter()


@router.post("/v1/pools", status_code=201, tags=["pools"])
async def create_pool(body: CreatePool, http: Writing) -> Pool:
    """Creates a pool: a base model with its adapters and backends."""
    return await http.write(http.registry.create_pool, CreatePool, body)


@router.get("/v1/pools", tags=["pools"])
async def list_pools(query: Annotated[ListPools, Query()], http: Reading) -> PoolList:
    """Lists pools by id."""
    return await http.run(http.registry.list_pools, query)


@router.get("/v1/pools/{pool_id}", tags=["pools"])
async def get_pool(pool_id: str, http: Reading) -> Pool:
    """Returns a pool."""
    return await http.read(http.registry.get_pool, GetById, id=pool_id)


@router.patch("/v1/pools/{pool_id}", tags=["pools"])
async def update_pool(pool_id: str, body: PoolChange, http: Writing) -> Pool:
    """Changes a pool. Absent fields stay as they are; aliases and serving are replaced as a whole."""
    return await http.write(http.registry.update_pool, UpdatePool, body, id=pool_id)


@router.post("/v1/backends", status_code=201, tags=["backends"])
async def register_backend(body: RegisterBackend, http: Writing) -> Backend:
    """Registers an inference server for a pool, or changes its URL and limits."""
    return await http.write(http.registry.register_backend, RegisterBackend, body)


@router.put("/v1/backends/{backend_id}", tags=["backends"])
async def put_backend(backend_id: str, body: BackendInput, http: Writing) -> Backend:
    """Registers an inference server under its id, or changes its URL and limits."""
    return await http.write(http.registry.register_backend, RegisterBackend, body, id=backend_id)


@router.get("/v1/backends", tags=["backends"])
async def list_backends(query: Annotated[ListBackends, Query()], http: Reading) -> BackendList:
    """Lists backends by id."""
    return await http.run(http.registry.list_backends, query)


@router.post("/v1/backends/{backend_id}/drain", tags=["backends"])
async def drain_backend(backend_id: str, http: Writing, body: Change | None = None) -> Backend:
    """Takes a backend out of new requests; running ones finish."""
    return await http.write(http.registry.drain_backend, DrainBackend, body, id=backend_id)
