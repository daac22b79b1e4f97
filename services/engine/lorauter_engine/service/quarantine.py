"""Stored adapters that cannot be served, with the reason: each is read once, not at every request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorauter.errors import UnprocessableRequest
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE

MAX_KEPT = 4_096
"""Most adapters that are remembered; the oldest are forgotten, and read again if they are asked for."""

Files = tuple[int, ...]


class Quarantine:
    """Adapters that were refused, by digest, until their files are others. For several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: OrderedDict[str, tuple[Files, UnprocessableRequest]] = OrderedDict()

    @contextmanager
    def guarding(self, digest: str, folder: Path) -> Iterator[None]:
        """Puts the adapter in ``folder`` in quarantine if the body refuses it.

        Raises the former refusal, without a look into the files, while they are what they were then.
        """
        files = _files(folder)
        with self._lock:
            known = self._refused.get(digest)
        if known is not None and known[0] == files:
            raise UnprocessableRequest(known[1].reason, known[1].message, **known[1].metadata)
        try:
            yield
        except UnprocessableRequest as error:
            with self._lock:
                self._refused[digest] = files, error
                while len(self._refused) > MAX_KEPT:
                    self._refused.popitem(last=False)
            raise
        with self._lock:
            self._refused.pop(digest, None)

    def reasons(self) -> dict[str, str]:
        """Returns why each adapter in quarantine was refused, by digest."""
        with self._lock:
            return {digest: error.reason for digest, (_, error) in self._refused.items()}


def _files(folder: Path) -> Files:
    """Returns what the file system knows of an adapter's files; it changes whenever they do."""
    known: list[int] = []
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        status = (folder / name).lstat()
        known += (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return tuple(known)
