"""Tells whose a key is, by what PostgreSQL keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class GivenKey:
    """A key that a setting gives, good for all tenants."""

    variable: str
    presented: Presented
    scopes: tuple[Scope, ...]


def given_keys(whole: Mapping[str, tuple[str, tuple[Scope, ...]]]) -> list[GivenKey]:
    """Returns the keys of settings by their variables; empty ones are left out."""
    read = ((variable, read_key(key), scopes) for variable, (key, scopes) in whole.items())
    return [GivenKey(variable, presented, scopes) for variable, presented, scopes in read if presented]


class Admission:
    """Keys by id. ``given`` are stored before others are looked at, as keys of ``tenant``."""

    def __init__(self, engine: Engine, given: Sequence[GivenKey] = (), tenant: str = "") -> None:
        self._engine = engine
        self._given = tuple(given)
        self._tenant = tenant

    def caller_of(self, presented: Presented) -> Caller:
        """Returns whose the key is.

        Raises Unauthenticated (KEY_INVALID, KEY_REVOKED, KEY_EXPIRED), Unavailable (DATABASE_UNAVAILABLE)
        or what store_given() raises.
        """
        self.store_given()
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

    def store_given(self) -> None:
        """Stores the given keys that are not there; one that was revoked stays so.

        Raises FailedPrecondition (KEY_ID_TAKEN) if another key has the id of one, Unavailable
        (DATABASE_UNAVAILABLE).
        """
        for given in self._given:
            self._store(given)
        self._given = ()

    def _store(self, given: GivenKey) -> None:
        values = {
            "id": given.presented.id,
            "tenant": self._tenant,
            "description": given.variable,
            "scopes": list(given.scopes),
            "digest": given.presented.digest,
            "any_tenant": True,
            "requests_per_minute": 0,
            "tokens_per_minute": 0,
            "successor": "",
        }
        ours = select(_KEYS.c.digest).where(_KEYS.c.id == given.presented.id)
        with translated_errors(), self._engine.begin() as connection:
            connection.execute(insert(_KEYS).values(values).on_conflict_do_nothing())
            stored = connection.execute(ours).scalar_one()
        if not given.presented.matches(stored):
            raise FailedPrecondition(
                "KEY_ID_TAKEN",
                f"{given.variable} has the id of another key: give it as it was made, or make a new one",
            )

    def refuse_when_empty(self) -> None:
        """Raises FailedPrecondition (NO_KEYS) if there is no key at all, so that nobody could make one."""
        with translated_errors(), self._engine.connect() as connection:
            if connection.execute(select(_KEYS.c.id).limit(1)).first() is None:
                raise FailedPrecondition(
                    "NO_KEYS",
                    "LORAUTER_BOOTSTRAP_KEY is not set, and the database has no key that could make others: "
                    "set it to a whole key, or let everybody in with LORAUTER_ACCESS=open",
                )


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
