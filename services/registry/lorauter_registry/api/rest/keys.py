"""API keys and the audit log over REST."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lorauter_registry.api.rest.http import Reading, Writing
from lorauter_registry.domain.fields import WriteRequest
from lorauter_registry.domain.keys import (
    ApiKey,
    ApiKeyList,
    AuditEntryList,
    CreateApiKey,
    CreatedApiKey,
    ListApiKeys,
    ListAuditEntries,
    RevokeApiKey,
    RotateApiKey,
    Rotation,
    WhoAmI,
    WhoIs,
)

router = APIRouter(tags=["keys"])


@router.post("/v1/keys", status_code=201)
async def create_api_key(body: CreateApiKey, http: Writing) -> CreatedApiKey:
    """Creates an API key. Its secret is in this answer only."""
    return await http.write(http.registry.create_api_key, CreateApiKey, body)


@router.get("/v1/keys")
async def list_api_keys(query: Annotated[ListApiKeys, Query()], http: Reading) -> ApiKeyList:
    """Lists API keys, newest first, without their secrets."""
    return await http.run(http.registry.list_api_keys, query)


@router.post("/v1/keys/{key_id}/rotate", status_code=201)
async def rotate_api_key(key_id: str, http: Writing, body: Rotation | None = None) -> CreatedApiKey:
    """Makes a key like this one, which stays good for the overlap: 24 hours unless said otherwise."""
    return await http.write(http.registry.rotate_api_key, RotateApiKey, body, id=key_id)


@router.post("/v1/keys/{key_id}/revoke")
async def revoke_api_key(key_id: str, http: Writing, body: WriteRequest | None = None) -> ApiKey:
    """Ends a key: the registry refuses it at once, other services within 5 s."""
    return await http.write(http.registry.revoke_api_key, RevokeApiKey, body, id=key_id)


@router.get("/v1/whoami")
async def who_am_i(http: Reading) -> WhoIs:
    """Returns whom the key that was sent belongs to, and what it allows."""
    return await http.run(http.registry.who_am_i, WhoAmI())


@router.get("/v1/audit")
async def list_audit_entries(query: Annotated[ListAuditEntries, Query()], http: Reading) -> AuditEntryList:
    """Lists the writes that were accepted, newest first: by which key, when, and what they changed."""
    return await http.run(http.registry.list_audit_entries, query)
