"""Tells whose a key is, by what PostgreSQL keeps of it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert

from lorauter.access import Caller, Presented, Scope, read_key
from lorauter.errors import FailedPrecondition, Unauthenticated
from lorauter.store import tables
from lorauter.store.session import translated_errors

_KEYS = tables.ApiKey.metadata.tables["api_key"]
_NOBODYS = bytes(32)
"""What a key that does not exist is compared with, so that its answer takes as long as others'."""


class Admission:
    """Keys by id. ``first`` is a whole key that is stored before others are looked at, as of all scopes."""

    def __init__(self, engine: Engine, first: str = "", tenant: str = "") -> None:
        self._engine = engine
        self._first = read_key(first) if first else None
        self._tenant = tenant

    def caller_of(self, presented: Presented) -> Caller:
        """Returns whose the key is.

        Raises Unauthenticated (KEY_INVALID, KEY_REVOKED, KEY_EXPIRED), Unavailable (DATABASE_UNAVAILABLE)
        or what store_first() raises.
        """
        self.store_first()
        statement = select(_KEYS, func.clock_timestamp().label("now")).where(_KEYS.c.id == presented.id)
        with translated_errors(), self._engine.connect() as connection:
            row = connection.execute(statement).one_or_none()
        if not presented.matches(row.digest if row else _NOBODYS) or row is None:
            raise Unauthenticated(
                "KEY_INVALID", "the key is not one of this registry: check how it is written"
            )
        if row.revoke_time is not None:
            raise Unauthenticated("KEY_REVOKED", "the key was revoked: ask for another one")
        if row.expire_time is not None and row.expire_time <= row.now:
            raise Unauthenticated("KEY_EXPIRED", "the key has expired: ask for another one")
        return Caller(
            tenant=row.tenant,
            scopes=frozenset(Scope(scope) for scope in row.scopes),
            key_id=row.id,
            any_tenant=row.any_tenant,
            expires=_seconds(row.expire_time),
            requests_per_minute=row.requests_per_minute,
            tokens_per_minute=row.tokens_per_minute,
        )

    def store_first(self) -> None:
        """Stores the first key if it is not there; one that was revoked stays so.

        Raises FailedPrecondition (FIRST_KEY_TAKEN) if another key has its id, Unavailable
        (DATABASE_UNAVAILABLE).
        """
        first = self._first
        if first is None:
            return
        values = {
            "id": first.id,
            "tenant": self._tenant,
            "description": "LORAUTER_BOOTSTRAP_KEY",
            "scopes": [str(Scope.ADMIN)],
            "digest": first.digest,
            "any_tenant": True,
            "requests_per_minute": 0,
            "tokens_per_minute": 0,
            "successor": "",
        }
        with translated_errors(), self._engine.begin() as connection:
            connection.execute(insert(_KEYS).values(values).on_conflict_do_nothing())
            stored = connection.execute(select(_KEYS.c.digest).where(_KEYS.c.id == first.id)).scalar_one()
        if not first.matches(stored):
            raise FailedPrecondition(
                "FIRST_KEY_TAKEN",
                "LORAUTER_BOOTSTRAP_KEY has the id of another key: give it as it was made, or make a new one",
            )
        self._first = None


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
