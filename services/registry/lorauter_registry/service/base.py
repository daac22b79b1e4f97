"""What all parts of the service share: idempotent writes, reads, guards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy import ARRAY, ColumnElement, Engine, String, any_, cast, delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from lorauter.access import caller
from lorauter.errors import AlreadyExists, Conflict, NotFound
from lorauter.lora.check import Limits
from lorauter.lora.store import AdapterStore
from lorauter.store import Write, read, tables, write
from lorauter_registry.domain.archives.requests import ArchiveLimits
from lorauter_registry.domain.fields import Value, WriteRequest
from lorauter_registry.ports import Folders, Hub, Wakeups
from lorauter_registry.service.auditing import record

T = TypeVar("T")
R = TypeVar("R", bound=Value)

REMEMBERED = timedelta(hours=24)
"""How long a request_id is known."""

_FORGOTTEN_AT_ONCE = 100
"""Most expired request_ids that one write removes, so that none waits long."""

_REMEMBERED = tables.IdempotentWrite.metadata.tables["idempotent_write"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Context:
    """What the service works with."""

    engine: Engine
    wakeups: Wakeups
    folders: Folders
    hub: Hub
    store: AdapterStore
    limits: Limits
    max_pins: timedelta
    audit_kept: timedelta = timedelta(days=400)
    backend_hosts: tuple[str, ...] = ()
    """Where backends may be; empty: anywhere."""
    archive_limits: ArchiveLimits = field(default_factory=ArchiveLimits)


class Resource(Protocol):
    """A row with an etag."""

    revision: int
    tenant: str
    generation: int
    create_time: datetime
    update_time: datetime


class Part:
    """A part of the service; every public method is one call of both transports."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def tenant(self) -> str:
        """Whose rows are read and written: the caller's; raises LookupError where there is none."""
        return caller().tenant

    def reading(self) -> AbstractContextManager[Session]:
        """Returns a session that sees one moment."""
        return read(self.context.engine)

    def answered(self, request: WriteRequest, kind: type[R]) -> R | None:
        """Returns what this very write answered before, or None.

        Spares a repeated write its preparation. Raises AlreadyExists (REQUEST_ID_REUSED).
        """
        if not request.request_id:
            return None
        with self.reading() as session:
            return self._remembered(session, request, kind, "", datetime.now(UTC))

    def changing(
        self, request: WriteRequest, kind: type[R], change: Callable[[Write], R], content: str = ""
    ) -> R:
        """Runs ``change`` in one transaction with its generation, once for each request_id.

        ``content`` is the digest of what travels beside the request. Writes of a tenant wait for each
        other at the generation's row, so of two concurrent duplicates the second finds the answer of
        the first. Raises AlreadyExists (REQUEST_ID_REUSED) and what ``change`` raises; then nothing
        is stored. What is accepted is written down beside it; workers are woken after the commit.
        """
        with write(self.context.engine, self.tenant) as tx:
            if request.request_id:
                answer = self._remembered(tx.session, request, kind, content, tx.now)
                if answer is not None:
                    tx.withdraw()
                    return answer
            taken = tx.generation
            answer = change(tx)
            record(tx, request, answer, taken, self.context.audit_kept)
            if request.request_id:
                self._remember(tx, request, answer, content)
        self.context.wakeups.wake(tx.owed)
        return answer

    def existing(self, session: Session, table: type[T], noun: str, key: Any, lock: bool = False) -> T:
        """Returns a row by its id, or by the rest of its key; raises NotFound (<NOUN>_NOT_FOUND)."""
        rest = key if isinstance(key, tuple) else (key,)
        row = session.get(table, (self.tenant, *rest), with_for_update=lock)
        if row is None:
            raise missing(noun, " version ".join(str(part) for part in rest))
        return row

    def _remembered(
        self, session: Session, request: WriteRequest, kind: type[R], content: str, now: datetime
    ) -> R | None:
        statement = select(_REMEMBERED.c.request_digest, _REMEMBERED.c.response).where(
            _REMEMBERED.c.tenant == self.tenant,
            _REMEMBERED.c.method == _method(request),
            _REMEMBERED.c.request_id == request.request_id,
            _REMEMBERED.c.create_time >= now - REMEMBERED,
        )
        row = session.execute(statement).one_or_none()
        if row is None:
            return None
        if row.request_digest != _digest(request, content):
            raise AlreadyExists(
                "REQUEST_ID_REUSED",
                f"request_id {request.request_id!r} was used for another {_method(request)}: choose another",
                field="request_id",
            )
        return kind.model_validate(row.response)

    def _remember(self, tx: Write, request: WriteRequest, answer: Value, content: str) -> None:
        self._forget(tx)
        values = {
            "request_digest": _digest(request, content),
            "response": answer.model_dump(mode="json"),
            "create_time": tx.now,
        }
        key = {"tenant": self.tenant, "method": _method(request), "request_id": request.request_id}
        statement = insert(_REMEMBERED).values(**key, **values)
        tx.session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))

    def _forget(self, tx: Write) -> None:
        key = _REMEMBERED.primary_key.columns
        expired = (
            select(*key)
            .where(_REMEMBERED.c.tenant == self.tenant, _REMEMBERED.c.create_time < tx.now - REMEMBERED)
            .limit(_FORGOTTEN_AT_ONCE)
        )
        tx.session.execute(delete(_REMEMBERED).where(tuple_(*key).in_(expired)))


def among(column: Any, values: Iterable[str]) -> ColumnElement[bool]:
    """Returns the condition that a column is one of ``values``, as many as there may be.

    They are one parameter, an array: a statement has at most 65,535.
    """
    return col(column) == any_(cast(list(values), ARRAY(String)))


def missing(noun: str, key: str) -> NotFound:
    """Returns the error for what does not exist."""
    return NotFound(
        f"{noun.upper().replace(' ', '_')}_NOT_FOUND",
        f"{noun} {key!r} does not exist: list what there is, or create it first",
        **{noun.replace(" ", "_"): key},
    )


def etag_of(row: Resource) -> str:
    """Returns the etag of a row: another one after every change, and after deletion and re-creation."""
    return f"{row.revision:x}-{(row.create_time - _EPOCH) // timedelta(microseconds=1):x}"


def check_etag(row: Resource, etag: str) -> None:
    """Returns if ``etag`` is empty or the row's own; raises Conflict (ETAG_MISMATCH)."""
    current = etag_of(row)
    if etag and etag != current:
        raise Conflict(
            "ETAG_MISMATCH", "it was changed since it was read: read it again and retry", etag=current
        )


def touch(row: Resource, tx: Write) -> None:
    """Stamps a changed row with the write's generation and time, which gives it a new etag."""
    row.revision += 1
    row.generation = tx.generation
    row.update_time = tx.now


def _method(request: WriteRequest) -> str:
    return type(request).__name__


def _digest(request: WriteRequest, content: str) -> str:
    asked = request.model_dump_json(exclude={"request_id"}, exclude_defaults=True)
    return hashlib.sha256(f"{asked}{content}".encode()).hexdigest()
