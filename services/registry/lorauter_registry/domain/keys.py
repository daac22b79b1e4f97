"""API keys and audit entries: what is asked about them, and what is answered."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from lorauter_registry.domain.fields import (
    MAX_INT64,
    Description,
    Id,
    Moment,
    OptionalId,
    PageRequest,
    Value,
    WriteRequest,
)
from lorauter_registry.domain.operation_requests import Duration

OVERLAP = timedelta(hours=24)
"""How long a rotated key stays good unless its rotation says otherwise."""

MAX_OVERLAP = timedelta(days=90)


class KeyScope(StrEnum):
    """What a key may allow: lorauter.access.Scope without ANY, which calls ask for and no key has."""

    ADMIN = "admin"
    WRITE = "write"
    READ = "read"
    INVOKE = "invoke"


def _unique(values: tuple[KeyScope, ...]) -> tuple[KeyScope, ...]:
    return tuple(dict.fromkeys(values))


Scopes = Annotated[tuple[KeyScope, ...], Field(min_length=1, max_length=16), AfterValidator(_unique)]
PerMinute = Annotated[int, Field(ge=0, le=MAX_INT64)]


class ApiKey(Value):
    """A key, without its secret."""

    id: str
    tenant: str
    description: str
    scopes: tuple[KeyScope, ...]
    any_tenant: bool
    requests_per_minute: int
    tokens_per_minute: int
    successor: str
    expire_time: Moment | None = None
    revoke_time: Moment | None = None
    create_time: Moment


class CreateApiKey(WriteRequest):
    """Creates a key."""

    description: Description = ""
    scopes: Scopes
    expire_time: Moment | None = None
    tenant: OptionalId = ""
    any_tenant: bool = False
    requests_per_minute: PerMinute = 0
    tokens_per_minute: PerMinute = 0


class CreatedApiKey(Value):
    """A key that was just made. The secret is in the first answer to a write only."""

    key: ApiKey
    secret: str = Field("", repr=False)


class ListApiKeys(PageRequest):
    """Asks for a page of keys."""


class ApiKeyList(Value):
    """A page of keys, newest first."""

    keys: tuple[ApiKey, ...]
    next_page_token: str = ""


class Rotation(WriteRequest):
    """Replaces a key."""

    overlap: Annotated[Duration, Field(ge=timedelta(), le=MAX_OVERLAP)] = OVERLAP


class RotateApiKey(Rotation):
    """Replaces a key by its id."""

    id: Id


class RevokeApiKey(WriteRequest):
    """Revokes a key."""

    id: Id


class WhoAmI(Value):
    """Asks whom the key that was sent belongs to."""


class WhoIs(Value):
    """Whom a key belongs to, and what it allows."""

    key_id: str
    tenant: str
    any_tenant: bool
    scopes: tuple[str, ...]
    expire_time: Moment | None = None
    requests_per_minute: int
    tokens_per_minute: int


class ListAuditEntries(PageRequest):
    """Asks for a page of audit entries."""

    key_id: OptionalId = Field("", description="Only those that this key made. Empty: all.")


class AuditEntry(Value):
    """A write that was accepted."""

    time: Moment
    key_id: str
    tenant: str
    method: str
    resource: str
    request_id: str
    generation: str


class AuditEntryList(Value):
    """A page of audit entries, newest first."""

    entries: tuple[AuditEntry, ...]
    next_page_token: str = ""
