"""Fills an empty registry from an archive: all of it in one transaction, or nothing.

Adapters' files come into the adapter store before that; they are named by content, so those of an import
that failed harm nobody, and its repetition need not write them again.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from itertools import islice
from typing import IO

from sqlalchemy import exc, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session

from lorauter.access import caller
from lorauter.errors import AlreadyExists, FailedPrecondition, PermissionDenied
from lorauter.identifiers import encode_generation
from lorauter.store import Write, tables
from lorauter_registry.domain.archives.framing import ArchiveReader, refused
from lorauter_registry.domain.archives.header import KEYS, Header
from lorauter_registry.domain.archives.lines import to_row
from lorauter_registry.domain.archives.requests import ImportRegistry, RegistryContents
from lorauter_registry.domain.archives.rows import ROWS
from lorauter_registry.service.archive_files import ArchiveFiles
from lorauter_registry.service.base import Part
from lorauter_registry.service.tasks import check_targets

INSERT_ROWS = 500

_TABLES = tables.Generation.metadata.tables
_OWNED = ("pool", "backend", "task", "adapter")
"""Tables of which an empty registry has no row."""

_CONTINUE = text(
    "UPDATE generation SET value = GREATEST(value, :value) WHERE tenant = :tenant RETURNING value"
)


class Importing(Part):
    """Imports."""

    def begin_import(self, request: ImportRegistry) -> Import:
        """Returns what takes an archive, to be closed in any case.

        Raises FailedPrecondition (REGISTRY_NOT_EMPTY); so does the end, if somebody was quicker.
        """
        if not self._came_before(request):
            with self.reading() as session:
                _check_empty(session, self.tenant)
        return Import(self, request)

    def _came_before(self, request: ImportRegistry) -> bool:
        """Returns whether an import had this request_id, of this archive or, as is seen later, another."""
        try:
            return self.answered(request, RegistryContents) is not None
        except AlreadyExists:
            return True

    def insert_archive(
        self, request: ImportRegistry, header: Header, files: ArchiveFiles
    ) -> RegistryContents:
        """Writes the rows of an archive that was read whole; raises PermissionDenied (TENANT_NOT_ALLOWED)."""
        rows = {name: count for name, count in header.rows.items() if name != KEYS or request.with_keys}
        may_give_any = caller().any_tenant

        def change(tx: Write) -> RegistryContents:
            _check_empty(tx.session, tx.tenant)
            values = {"tenant": tx.tenant, "value": header.generation}
            tx.generation = tx.session.connection().execute(_CONTINUE, values).scalar_one()
            for name in (name for name in ROWS if name in rows):
                _insert(tx, name, files.lines_of(name), may_give_any)
            for pool in files.checks.pools:
                tx.owe("index", pool)
            return RegistryContents(
                rows=rows,
                adapters=header.adapters,
                generation=encode_generation(tx.generation, tx.tenant),
            )

        return self.changing(request, RegistryContents, change, content=files.digest)


class Import:
    """An import under way, fed piece by piece by one thread at a time."""

    def __init__(self, part: Importing, request: ImportRegistry) -> None:
        context = part.context
        self._part = part
        self._request = request
        self._spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        self._files = ArchiveFiles(
            self._spool, context.store, context.limits, context.archive_limits, check_targets
        )
        self._lock = threading.Lock()
        self._reader = ArchiveReader(self._files)

    def feed_archive(self, piece: bytes) -> None:
        """Takes a piece; raises UnprocessableRequest (ARCHIVE_MALFORMED, ARCHIVE_VERSION and others)."""
        with self._lock:
            self._reader.feed(piece)

    def finish_import(self) -> RegistryContents:
        """Imports what came; see ImportRegistry in the protos for what it raises."""
        with self._lock:
            self._reader.close()
            return self._part.insert_archive(self._request, self._files.completed(), self._files)

    def close(self) -> None:
        """Removes what was kept of the archive, once the thread is through that works on it."""
        with self._lock:
            self._files.close()
            self._spool.close()


def _insert(tx: Write, name: str, lines: Iterator[bytes], may_give_any: bool) -> None:
    numbered = enumerate(lines, 1)
    statement = insert(_TABLES[name])
    if name == KEYS:  # ids are unique over all tenants: a key that is known stays as it is
        statement = statement.on_conflict_do_nothing()
    while batch := list(islice(numbered, INSERT_ROWS)):
        values = [{"tenant": tx.tenant, **to_row(name, line, number).values()} for number, line in batch]
        if name == KEYS and not may_give_any and any(row["any_tenant"] for row in values):
            raise PermissionDenied(
                "TENANT_NOT_ALLOWED",
                "the archive has keys that may act for every tenant, yours may not; nothing was imported: "
                "import it with such a key, or without keys",
            )
        try:
            tx.session.execute(statement, values)
        except (exc.IntegrityError, exc.DataError) as error:
            raise refused(
                "ARCHIVE_INCONSISTENT",
                f"has rows that contradict others, rows/{name}.jsonl, lines {batch[0][0]} to {batch[-1][0]}: "
                f"{_told_by(error)}",
                table=name,
            ) from None


def _told_by(error: exc.DBAPIError) -> str:
    diagnosis = getattr(error.orig, "diag", None)
    return str(getattr(diagnosis, "message_primary", "PostgreSQL does not take them"))[:300]


def _check_empty(session: Session, tenant: str) -> None:
    for name in _OWNED:
        table = _TABLES[name]
        if session.execute(select(1).where(table.c.tenant == tenant).limit(1)).first():
            raise FailedPrecondition(
                "REGISTRY_NOT_EMPTY",
                f"the registry has a {name} already: an archive is imported into an empty registry only, so "
                "give it a new database, or a key of another tenant",
            )
