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

from sqlalchemy import exc, insert, select, text

from lorauter.errors import FailedPrecondition
from lorauter.identifiers import encode_generation
from lorauter.store import Write, tables
from lorauter_registry.domain.archives.framing import ArchiveReader, refused
from lorauter_registry.domain.archives.header import Header
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
        if not request.request_id or self.answered(request, RegistryContents) is None:
            with self.reading() as session:
                for name in _OWNED:
                    table = _TABLES[name]
                    if session.execute(select(1).where(table.c.tenant == self.tenant).limit(1)).first():
                        raise _not_empty(name)
        return Import(self, request)

    def insert_archive(
        self, request: ImportRegistry, header: Header, files: ArchiveFiles
    ) -> RegistryContents:
        """Writes the rows of an archive that was read whole."""

        def change(tx: Write) -> RegistryContents:
            for name in _OWNED:
                table = _TABLES[name]
                if tx.session.execute(select(1).where(table.c.tenant == tx.tenant).limit(1)).first():
                    raise _not_empty(name)
            values = {"tenant": tx.tenant, "value": header.generation}
            tx.generation = tx.session.connection().execute(_CONTINUE, values).scalar_one()
            for name in (name for name in ROWS if name in header.rows):
                _insert(tx, name, files.lines_of(name))
            for pool in files.checks.pools:
                tx.owe("index", pool)
            return RegistryContents(
                rows=header.rows,
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


def _insert(tx: Write, name: str, lines: Iterator[bytes]) -> None:
    table = _TABLES[name]
    numbered = enumerate(lines, 1)
    while batch := list(islice(numbered, INSERT_ROWS)):
        values = [{"tenant": tx.tenant, **to_row(name, line, number).values()} for number, line in batch]
        try:
            tx.session.execute(insert(table), values)
        except (exc.IntegrityError, exc.DataError) as error:
            reason = str(getattr(error.orig, "diag", None) and error.orig.diag.message_primary)[:300]  # type: ignore[union-attr]
            raise refused(
                "ARCHIVE_INCONSISTENT",
                f"has rows that contradict others, rows/{name}.jsonl, lines {batch[0][0]} to {batch[-1][0]}: "
                + reason,
                table=name,
            ) from None


def _not_empty(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        "REGISTRY_NOT_EMPTY",
        f"the registry has a {name} already: an archive is imported into an empty registry only, so give it "
        "a new database, or a key of another tenant",
    )
