"""An archive is a tar of plain files in a fixed order, written and read piece by piece.

Only what this module writes is read: no links, folders, extensions or sparse files, and names of ours alone.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from typing import Protocol

from lorauter.errors import UnprocessableRequest

BLOCK = 512
HEADER = "lorauter.json"
END = "end.json"


def refused(reason: str, problem: str, **metadata: str) -> UnprocessableRequest:
    """Returns the error for an archive that cannot be imported; nothing of it was."""
    return UnprocessableRequest(reason, f"the archive {problem}; nothing was imported", **metadata)


def member_header(name: str, size: int) -> bytes:
    """Returns the block that precedes a file of ``size`` bytes: mode 0644, of nobody, of no time."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """Returns the zeros that follow a file of ``size`` bytes."""
    return bytes(-size % BLOCK)


TRAILER = bytes(2 * BLOCK)
"""What ends a tar."""


def padded_size(size: int) -> int:
    """Returns the bytes that a file of ``size`` takes, its header included."""
    return BLOCK + size + len(padding(size))


class Sink(Protocol):
    """Takes the files of an archive as they come. Each method may raise UnprocessableRequest."""

    def begin(self, name: str, size: int, before: str) -> None:
        """A file begins; it is refused here if it may not stand there or be as large.

        ``before`` is the sha256 of all before it, in hex.
        """

    def data(self, piece: bytes) -> None:
        """The next bytes of the file that has begun."""

    def finish(self) -> None:
        """The file is complete."""


class ArchiveReader:
    """Takes an archive in pieces that may end anywhere, and hands its files to a sink.

    Keeps less than a block.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._rest = b""
        self._left = 0
        self._padding = 0
        self._is_ending = False
        self._hash = hashlib.sha256()

    def feed(self, piece: bytes) -> None:
        """Takes a piece; raises UnprocessableRequest (ARCHIVE_MALFORMED) and what the sink raises."""
        view = memoryview(self._rest + piece) if self._rest else memoryview(piece)
        self._rest = b""
        while view:
            taken = self._take(view)
            if not taken:
                self._rest = bytes(view)
                return
            self._hash.update(view[:taken])
            view = view[taken:]

    def close(self) -> None:
        """Says that all came; raises UnprocessableRequest (ARCHIVE_TRUNCATED) if it did not."""
        if self._left or self._padding or self._rest or not self._is_ending:
            raise refused("ARCHIVE_TRUNCATED", "ends before its end: export it again, or send all of it")

    def _take(self, view: memoryview) -> int:
        """Returns how many bytes were used, 0 if more are needed."""
        if self._left:
            part = view[: self._left]
            self._left -= len(part)
            self._sink.data(bytes(part))
            if not self._left:
                self._sink.finish()
            return len(part)
        if self._padding:
            part = view[: self._padding]
            if any(part):
                raise _malformed("has bytes between its files")
            self._padding -= len(part)
            return len(part)
        if len(view) < BLOCK:
            return 0
        self._begin(bytes(view[:BLOCK]))
        return BLOCK

    def _begin(self, block: bytes) -> None:
        if self._is_ending or not any(block):
            if any(block):
                raise _malformed("goes on after its end")
            self._is_ending = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
            is_ours = info.size >= 0 and block == member_header(info.name, info.size)
        except (tarfile.HeaderError, ValueError):
            raise _malformed("is not a tar as `lorauter export` writes it") from None
        if not is_ours:
            raise _malformed(
                f"holds {info.name[:100]!r}, which is no plain file as `lorauter export` writes it"
            )
        self._sink.begin(info.name, info.size, self._hash.hexdigest())
        self._left, self._padding = info.size, len(padding(info.size))
        if not info.size:
            self._sink.finish()


def framed(name: str, data: bytes) -> Iterator[bytes]:
    """Yields a small file as it stands in an archive."""
    yield member_header(name, len(data))
    yield data + padding(len(data))


def _malformed(problem: str) -> UnprocessableRequest:
    return refused("ARCHIVE_MALFORMED", problem)
