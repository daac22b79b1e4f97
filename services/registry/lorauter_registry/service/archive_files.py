"""Takes the files of an archive in their order: header, rows, adapters, end. Nothing is believed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import IO

from lorauter.errors import UnprocessableRequest
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE, Limits
from lorauter.lora.store import AdapterStore
from lorauter_registry.domain.archives import framing
from lorauter_registry.domain.archives.checks import Checks, CheckTargets
from lorauter_registry.domain.archives.framing import refused
from lorauter_registry.domain.archives.header import (
    MAX_END_BYTES,
    MAX_HEADER_BYTES,
    Header,
    read_end,
    read_header,
)
from lorauter_registry.domain.archives.lines import Lines, to_row
from lorauter_registry.domain.archives.requests import ArchiveLimits
from lorauter_registry.domain.archives.rows import ROWS, AdapterVersionRow
from lorauter_registry.service.archive_adapters import ArchiveAdapters, Wanted

_ROWS = re.compile(r"rows/([a-z_]+)\.jsonl")
_ADAPTER = re.compile(rf"adapters/([0-9a-f]{{64}})/({re.escape(CONFIG_FILE)}|{re.escape(WEIGHTS_FILE)})")
_ORDER = list(ROWS)


class ArchiveFiles:
    """A sink of ArchiveReader that checks each file as it comes, and keeps rows in ``spool``.

    Each method may raise UnprocessableRequest: ARCHIVE_MALFORMED, ARCHIVE_VERSION, ARCHIVE_TOO_LARGE,
    ARCHIVE_ROW_INVALID, ARCHIVE_INCONSISTENT, ARCHIVE_DAMAGED, or the reasons of check_adapter().
    """

    def __init__(
        self,
        spool: IO[bytes],
        store: AdapterStore,
        limits: Limits,
        archive_limits: ArchiveLimits,
        check_targets: CheckTargets,
    ) -> None:
        self.checks = Checks(0, archive_limits.max_set_bytes, check_targets)
        self.digest = ""
        self._spool = spool
        self._adapters = ArchiveAdapters(store, limits)
        self._limits = archive_limits
        self._check_targets = check_targets
        self._header: Header | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self._take: Callable[[bytes], None]
        self._finish: Callable[[], None]
        self._small = b""
        self._lines = Lines("")
        self._is_complete = False

    def begin(self, name: str, size: int, before: str) -> None:
        """See Sink."""
        if self._is_complete:
            raise _misplaced(name)
        self.digest = before
        if self._header is None or name == framing.END:
            self._begin_small(name, size)
        elif found := _ROWS.fullmatch(name):
            self._begin_rows(found[1], size)
        elif found := _ADAPTER.fullmatch(name):
            self._check_tables(self._header)
            self._adapters.begin(found[1], found[2], size, self._wanted.get(f"sha256:{found[1]}"))
            self._take, self._finish = self._adapters.data, self._adapters.finish
        else:
            raise _misplaced(name)

    def data(self, piece: bytes) -> None:
        """See Sink."""
        self._take(piece)

    def finish(self) -> None:
        """See Sink."""
        self._finish()

    def completed(self) -> Header:
        """Returns the header of an archive that is whole."""
        if self._header is None or not self._is_complete:
            raise refused("ARCHIVE_TRUNCATED", "ends before its end: export it again, or send all of it")
        return self._header

    def lines_of(self, table: str) -> Iterator[bytes]:
        """Yields the lines of a table, which were checked."""
        place, size = self._places[table]
        self._spool.seek(place)
        while size:
            line = self._spool.readline()
            size -= len(line)
            yield line

    def close(self) -> None:
        """Removes an adapter that came in part."""
        self._adapters.close()

    def _begin_small(self, name: str, size: int) -> None:
        is_end = self._header is not None
        if not is_end and name != framing.HEADER:
            raise refused("ARCHIVE_MALFORMED", f"does not begin with {framing.HEADER}")
        if size > (MAX_END_BYTES if is_end else MAX_HEADER_BYTES):
            raise refused("ARCHIVE_TOO_LARGE", f"has a {name} of {size} bytes")
        self._small = b""
        self._take, self._finish = self._take_small, self._end if is_end else self._take_header

    def _take_small(self, piece: bytes) -> None:
        self._small += piece

    def _take_header(self) -> None:
        self._header = read_header(self._small)
        self.checks = Checks(self._header.generation, self._limits.max_set_bytes, self._check_targets)

    def _end(self) -> None:
        assert self._header is not None
        self._check_tables(self._header)
        if read_end(self._small).sha256 != self.digest:
            raise refused("ARCHIVE_DAMAGED", "is not what was exported: its digest differs")
        if self._adapters.count != self._header.adapters:
            raise refused(
                "ARCHIVE_MALFORMED", f"has {self._adapters.count} adapters, {self._header.adapters} said"
            )
        for digest, wanted in self._wanted.items():
            self._adapters.require(digest, wanted)
        self._is_complete = True

    def _begin_rows(self, table: str, size: int) -> None:
        last = next(reversed(self._places), None)
        is_next = last is None or _ORDER.index(table) > _ORDER.index(last)
        if self._header is None or table not in self._header.rows or not is_next or self._adapters.count:
            raise _misplaced(f"rows/{table}.jsonl")
        place = sum(self._places[last]) if last else 0
        if place + size > self._limits.max_rows_bytes:
            raise refused(
                "ARCHIVE_TOO_LARGE",
                f"has rows of over {self._limits.max_rows_bytes} bytes: raise LORAUTER_MAX_ARCHIVE_BYTES",
            )
        self._places[table] = place, size
        self._lines = Lines(table)
        self._take, self._finish = self._take_rows, self._finish_rows

    def _take_rows(self, piece: bytes) -> None:
        for line in self._lines.feed(piece):
            self.checks.take(to_row(self._lines.table, line, self._lines.count))
        self._spool.write(piece)

    def _finish_rows(self) -> None:
        assert self._header is not None
        self._lines.close()
        table, count = self._lines.table, self._lines.count
        if count != self._header.rows[table]:
            raise refused("ARCHIVE_MALFORMED", f"has {count} rows of {table}, not as many as it says")
        self.checks.end_table(table)

    def _check_tables(self, header: Header) -> None:
        if lacking := sorted(set(header.rows) - set(self._places)):
            raise refused("ARCHIVE_MALFORMED", f"lacks rows/{lacking[0]}.jsonl, or has it too late")

    @cached_property
    def _wanted(self) -> dict[str, Wanted]:
        """By digest; to be asked for when all rows are there."""
        rows: dict[str, list[AdapterVersionRow]] = {}
        for row in self.checks.versions.values():
            rows.setdefault(row.digest, []).append(row)
        return {
            digest: Wanted(named, [self._modules(row) for row in named]) for digest, named in rows.items()
        }

    def _modules(self, row: AdapterVersionRow) -> dict[str, tuple[int, int]]:
        pool = self.checks.pools[self.checks.adapters[row.adapter_id].pool]
        return {name: (shape[0], shape[1]) for name, shape in pool.modules.items()}


def _misplaced(name: str) -> UnprocessableRequest:
    return refused("ARCHIVE_MALFORMED", f"has {name[:120]!r}, which does not belong there")
