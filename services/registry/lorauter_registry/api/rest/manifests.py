"""Pool manifests over REST."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lorauter_registry.api.convert import checked
from lorauter_registry.api.rest.http import Reading, Writing
from lorauter_registry.domain.fields import PageRequest, WriteRequest
from lorauter_registry.domain.manifests import (
    ListPoolManifests,
    ManifestProposal,
    PoolManifest,
    PoolManifestList,
    ProposePoolManifest,
    PublishPoolManifest,
)

router = APIRouter(tags=["manifests"])


@router.post("/v1/pools/{pool_id}/manifests", status_code=201)
async def propose_pool_manifest(
    pool_id: str, http: Writing, body: ManifestProposal | None = None
) -> PoolManifest:
    """Proposes what a pool's TGI instances load at start-up; changes nothing that is served."""
    return await http.write(http.registry.propose_pool_manifest, ProposePoolManifest, body, pool=pool_id)


@router.get("/v1/pools/{pool_id}/manifests")
async def list_pool_manifests(
    pool_id: str, query: Annotated[PageRequest, Query()], http: Reading
) -> PoolManifestList:
    """Lists a pool's manifests, newest first."""
    asked = checked(ListPoolManifests, {**query.model_dump(), "pool": pool_id})
    return await http.run(http.registry.list_pool_manifests, asked)


@router.post("/v1/pools/{pool_id}/manifests/{digest}/publish")
async def publish_pool_manifest(
    pool_id: str, digest: str, http: Writing, body: WriteRequest | None = None
) -> PoolManifest:
    """Puts a manifest in force; routers hear of it once its composites are in the adapter store."""
    call = http.registry.publish_pool_manifest
    return await http.write(call, PublishPoolManifest, body, pool=pool_id, digest=digest)
