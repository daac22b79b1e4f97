"""Tells from the file system whether anybody touched a folder: inotify, and a census of its entries."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

TOUCHED = 0x1 | 0x2 | 0x4 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400
"""Read, written, its attributes changed, opened, moved from, moved to, made in, removed from, removed."""

_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Events on every file and folder under ``root`` that was there at the start, whoever causes them."""

    def __init__(self, root: Path) -> None:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths: dict[int, Path] = {}
        for path in (root, *sorted(root.rglob("*"))):
            number = _libc.inotify_add_watch(self._descriptor, os.fsencode(path), TOUCHED)
            if number < 0:
                raise OSError(ctypes.get_errno(), f"no watch on {path}")
            self._paths[number] = path

    def events(self) -> list[str]:
        """Returns `mask path name` of each event since the last call."""
        found: list[str] = []
        while True:
            try:
                data = os.read(self._descriptor, 65_536)
            except BlockingIOError:
                return found
            while data:
                number, mask, _, length = _EVENT.unpack_from(data)
                name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                found.append(f"{mask:#x} {self._paths.get(number, number)} {os.fsdecode(name)}")
                data = data[_EVENT.size + length :]

    def close(self) -> None:
        """Ends the watch."""
        os.close(self._descriptor)


def census(root: Path) -> dict[str, tuple[int, ...]]:
    """Returns what the file system knows of everything under ``root``, links not followed, by path."""
    found: dict[str, tuple[int, ...]] = {}
    for folder, names, files in os.walk(os.fsencode(root)):
        for name in (b".", *names, *files):
            path = os.path.join(folder, name)  # noqa: PTH118
            status = os.lstat(path)
            found[os.fsdecode(path)] = (
                status.st_ino,
                status.st_mode,
                status.st_nlink,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
    return found
