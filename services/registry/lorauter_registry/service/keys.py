"""API keys: made, listed, replaced and revoked. Their secrets are told once and stored nowhere."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlmodel import col, select

from lorauter.access import acting, caller, make_key, read_key
from lorauter.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from lorauter.store import Write, tables
from lorauter_registry.domain.keys import (
    ApiKey,
    ApiKeyList,
    CreateApiKey,
    CreatedApiKey,
    KeyScope,
    ListApiKeys,
    RevokeApiKey,
    RotateApiKey,
    WhoAmI,
    WhoIs,
)
from lorauter_registry.service.base import Part, missing
from lorauter_registry.service.lists import paginate

_KEPT = {"description", "scopes", "any_tenant", "requests_per_minute", "tokens_per_minute"}
"""What a key has of the one that it replaces."""


class Keys(Part):
    """API keys of the caller's tenant."""

    def create_api_key(self, request: CreateApiKey) -> CreatedApiKey:
        """Makes a key; makes no generation.

        Raises PermissionDenied (TENANT_NOT_ALLOWED) or InvalidArgument (INVALID_FIELD) if it would have
        expired already.
        """
        who = caller()
        if request.any_tenant and not who.any_tenant:
            raise _only_any_tenant("make one that may", "any_tenant")
        secret = ""

        def change(tx: Write) -> ApiKey:
            nonlocal secret
            if request.expire_time is not None and request.expire_time <= tx.now:
                raise InvalidArgument(
                    "INVALID_FIELD", "expire_time has passed: give a later one", field="expire_time"
                )
            given = request.model_dump(exclude={"request_id", "tenant", "scopes"})
            row, secret = _added(tx, scopes=[str(scope) for scope in request.scopes], **given)
            tx.withdraw()
            return key_of(row)

        with acting(who.acting_for(request.tenant)):
            key = self.changing(request, ApiKey, change)
        return CreatedApiKey(key=key, secret=secret)

    def list_api_keys(self, request: ListApiKeys) -> ApiKeyList:
        """Lists the tenant's keys, newest first, revoked and expired ones too."""
        key = tables.ApiKey
        with self.reading() as session:
            keys, token = paginate(
                session,
                select(key).where(key.tenant == self.tenant),
                self.tenant,
                request,
                [col(key.create_time), col(key.id)],
                lambda rows: [key_of(row) for row in rows],
                newest_first=True,
            )
        return ApiKeyList(keys=keys, next_page_token=token)

    def rotate_api_key(self, request: RotateApiKey) -> CreatedApiKey:
        """Makes a key like another one, which stays good for the overlap; makes no generation.

        The new one is good for as long as the old one was to be. Raises NotFound (KEY_NOT_FOUND),
        PermissionDenied (TENANT_NOT_ALLOWED) or FailedPrecondition (KEY_REVOKED, KEY_EXPIRED, KEY_ROTATED).
        """
        secret = ""

        def change(tx: Write) -> ApiKey:
            nonlocal secret
            old = self._owned(tx, request.id)
            _check_good(old, tx.now)
            lifetime = old.expire_time and old.expire_time - old.create_time
            new, secret = _added(
                tx, **old.model_dump(include=_KEPT), expire_time=lifetime and tx.now + lifetime
            )
            old.successor = new.id
            end = tx.now + request.overlap
            old.expire_time = min(old.expire_time, end) if old.expire_time else end
            tx.withdraw()
            return key_of(new)

        key = self.changing(request, ApiKey, change)
        return CreatedApiKey(key=key, secret=secret)

    def revoke_api_key(self, request: RevokeApiKey) -> ApiKey:
        """Ends a key at once; makes no generation. One that is revoked stays as it is.

        Raises NotFound (KEY_NOT_FOUND) or PermissionDenied (TENANT_NOT_ALLOWED).
        """

        def change(tx: Write) -> ApiKey:
            row = self._owned(tx, request.id)
            row.revoke_time = row.revoke_time or tx.now
            tx.withdraw()
            return key_of(row)

        return self.changing(request, ApiKey, change)

    def who_am_i(self, _: WhoAmI) -> WhoIs:
        """Returns whom the caller's key belongs to, and what it allows."""
        who = caller()
        return WhoIs(
            key_id=who.key_id,
            tenant=who.tenant,
            any_tenant=who.any_tenant,
            scopes=tuple(sorted(who.scopes)),
            expire_time=None if who.expires is None else datetime.fromtimestamp(who.expires, UTC),
            requests_per_minute=who.requests_per_minute,
            tokens_per_minute=who.tokens_per_minute,
        )

    def _owned(self, tx: Write, key_id: str) -> tables.ApiKey:
        row = tx.session.get(tables.ApiKey, key_id, with_for_update=True)
        if row is None or row.tenant != self.tenant:
            raise missing("key", key_id)
        if row.any_tenant and not caller().any_tenant:
            raise _only_any_tenant("replace or revoke one that may", "id")
        return row


def key_of(row: tables.ApiKey) -> ApiKey:
    """Returns the key of a row."""
    return ApiKey(
        **row.model_dump(exclude={"digest", "scopes"}),
        scopes=tuple(KeyScope(scope) for scope in row.scopes),
    )


def _added(tx: Write, **columns: Any) -> tuple[tables.ApiKey, str]:
    """Adds a key of the write's tenant; returns its row and the whole key."""
    secret = make_key()
    presented = read_key(secret)
    assert presented is not None
    row = tables.ApiKey(
        id=presented.id, tenant=tx.tenant, digest=presented.digest, create_time=tx.now, **columns
    )
    tx.session.add(row)
    return row, secret


def _check_good(row: tables.ApiKey, now: datetime) -> None:
    if row.revoke_time is not None:
        raise FailedPrecondition("KEY_REVOKED", f"key {row.id!r} was revoked: create another one")
    if row.expire_time is not None and row.expire_time <= now:
        raise FailedPrecondition("KEY_EXPIRED", f"key {row.id!r} has expired: create another one")
    if row.successor:
        raise FailedPrecondition(
            "KEY_ROTATED",
            f"key {row.id!r} was replaced by {row.successor!r}: rotate that one",
            successor=row.successor,
        )


def _only_any_tenant(what: str, field: str) -> PermissionDenied:
    return PermissionDenied(
        "TENANT_NOT_ALLOWED",
        f"only a key that may act for other tenants can {what}: ask whoever has one",
        field=field,
    )
