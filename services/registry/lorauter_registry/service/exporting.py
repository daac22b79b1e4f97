"""Writes a registry as an archive: its rows as of one moment, then adapters' files, which never change."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO

from sqlalchemy import select
from sqlmodel import Session

from lorauter.errors import FailedPrecondition, NotFound
from lorauter.identifiers import backend_name, encode_generation
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE
from lorauter.store import tables
from lorauter.store.schema import revisions
from lorauter_registry.domain.archives import framing
from lorauter_registry.domain.archives.header import FORMAT, KEYS, VERSION, End, Header, to_json
from lorauter_registry.domain.archives.lines import to_line
from lorauter_registry.domain.archives.requests import ExportRegistry, RegistryContents
from lorauter_registry.domain.archives.rows import ROWS
from lorauter_registry.domain.resources import AdapterState, OperationState
from lorauter_registry.service.base import Part

PIECE_BYTES = 1024 * 1024
READ_ROWS = 1_000

_PART_BYTES = PIECE_BYTES // 2

_TABLES = tables.Generation.metadata.tables
_DISPENSABLE = frozenset({AdapterState.RETIRED, AdapterState.QUARANTINED})
"""States of versions whose files may be gone."""

Files = list[tuple[str, Path]]
"""Names in the archive and where they are."""


class Exporting(Part):
    """Exports."""

    def export_registry(self, request: ExportRegistry) -> Export:
        """Returns an archive of all that the tenant's registry holds, to be closed after it was read.

        Rows are written to a temporary file first, so that whoever reads slowly holds nothing up. Raises
        NotFound (REGISTRY_EMPTY), or FailedPrecondition (ADAPTER_NOT_STORED) if the files of a version that
        serves are gone.
        """
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - the export closes it
        try:
            with self.reading() as session:
                counter = session.get(tables.Generation, self.tenant)
                if counter is None or counter.value == 0:
                    raise NotFound(
                        "REGISTRY_EMPTY", "the registry holds nothing yet: there is nothing to export"
                    )
                counts = {name: _write_rows(session, name, self.tenant, spool) for name in _chosen(request)}
                files = [] if request.without_weights else self._stored_files(session)
            header = Header(
                format=FORMAT,
                version=VERSION,
                lorauter=version("lorauter"),
                schema_revision=revisions()[-1],
                generation=counter.value,
                weights=not request.without_weights,
                adapters=len(files) // 2,
                rows={name: count for name, (count, _) in counts.items()},
            )
            generation = encode_generation(counter.value, self.tenant)
            return Export(
                header, generation, {name: size for name, (_, size) in counts.items()}, spool, files
            )
        except BaseException:
            spool.close()
            raise

    def _stored_files(self, session: Session) -> Files:
        row = tables.AdapterVersion
        statement = select(row.digest, row.state, row.adapter_id).where(row.tenant == self.tenant)  # type: ignore[call-overload]
        needed: dict[str, str] = {}
        digests = set()
        for digest, state, adapter_id in session.execute(statement):
            digests.add(digest)
            if state not in _DISPENSABLE:
                needed[digest] = adapter_id
        files: Files = []
        for digest in sorted(digests):
            try:
                folder = self.context.store.verify(digest)
            except NotFound:
                if digest in needed:
                    raise _gone(digest, needed[digest]) from None
                continue
            files += [
                (f"adapters/{backend_name(digest)}/{name}", folder / name)
                for name in (CONFIG_FILE, WEIGHTS_FILE)
            ]
        return files


class Export:
    """An archive that is read once, in pieces of at most 1 MiB. ``total_bytes`` is its size."""

    def __init__(
        self, header: Header, generation: str, tables: dict[str, int], spool: IO[bytes], files: Files
    ) -> None:
        self._header = to_json(header)
        self._tables = tables
        self._spool = spool
        self._files = files
        self._pieces = self._written()
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self.contents = RegistryContents(
            rows=header.rows,
            adapters=header.adapters,
            generation=generation,
        )
        end = to_json(End(sha256="0" * 64))
        sizes = [len(self._header), *tables.values(), *(path.stat().st_size for _, path in files), len(end)]
        self.total_bytes = sum(map(framing.padded_size, sizes)) + len(framing.TRAILER)

    def read_archive(self) -> bytes:
        """Returns the next piece, empty at the end. Raises FailedPrecondition (ADAPTER_CORRUPT)."""
        parts: list[bytes] = []
        with self._lock:
            while sum(map(len, parts)) < _PART_BYTES and (part := next(self._pieces, b"")):
                parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Removes the temporary file, once the thread is through that reads it."""
        with self._lock:
            self._pieces.close()
            self._spool.close()

    def _written(self) -> Generator[bytes, None, None]:
        for piece in self._content():
            self._hash.update(piece)
            yield piece
        yield from framing.framed(framing.END, to_json(End(sha256=self._hash.hexdigest())))
        yield framing.TRAILER

    def _content(self) -> Iterator[bytes]:
        yield from framing.framed(framing.HEADER, self._header)
        self._spool.seek(0)
        for name, size in self._tables.items():
            yield from _file(f"rows/{name}.jsonl", size, self._spool)
        for name, path in self._files:
            with path.open("rb") as file:
                yield from _file(name, path.stat().st_size, file)


def _chosen(request: ExportRegistry) -> list[str]:
    left_out = {"cached_embedding"} if request.without_embeddings else set()
    return [name for name in ROWS if name not in left_out and (name != KEYS or request.with_keys)]


def _file(name: str, size: int, file: IO[bytes]) -> Iterator[bytes]:
    yield framing.member_header(name, size)
    left = size
    while left:
        piece = file.read(min(left, _PART_BYTES))
        if not piece:
            raise FailedPrecondition(
                "ADAPTER_CORRUPT", f"{name} became shorter while it was exported: try again"
            )
        left -= len(piece)
        yield piece
    yield framing.padding(size)


def _write_rows(session: Session, name: str, tenant: str, spool: IO[bytes]) -> tuple[int, int]:
    """Writes a table's rows in the order of its key; returns their number and size."""
    table, began, count = _TABLES[name], spool.tell(), 0
    columns = [table.c[field] for field in ROWS[name].model_fields]
    statement = select(*columns).where(table.c.tenant == tenant).order_by(*table.primary_key.columns)
    if name == "operation":
        statement = statement.where(table.c.state.in_([state for state in OperationState if state.is_final]))
    for row in session.execute(statement, execution_options={"yield_per": READ_ROWS}):
        spool.write(to_line(dict(row._mapping)))
        count += 1
    return count, spool.tell() - began


def _gone(digest: str, adapter_id: str) -> FailedPrecondition:
    return FailedPrecondition(
        "ADAPTER_NOT_STORED",
        f"the files of adapter {adapter_id!r}, {digest}, are not in the adapter store: bring the store back, "
        "retire the adapter, or export without weights",
        digest=digest,
    )
