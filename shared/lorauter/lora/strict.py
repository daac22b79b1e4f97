"""Reads what strangers wrote: strict JSON, and files that are really files."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from lorauter.errors import UnprocessableRequest


def refused(reason: str, message: str, **metadata: str) -> UnprocessableRequest:
    """Returns the error for an adapter that cannot be taken."""
    return UnprocessableRequest(reason, message, **metadata)


def parse_object(data: bytes) -> dict[str, Any]:
    """Returns the JSON object in ``data``.

    Raises ValueError for anything that readers could understand differently: duplicate keys, NaN or
    infinite numbers, other encodings than UTF-8, nesting beyond the parser's depth, a non-object;
    and for what no database stores: U+0000, half a surrogate pair.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_not_a_number,
            parse_float=_finite,
        )
        _check_texts(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def open_regular(path: Path, alone: bool = False) -> BufferedReader:
    """Opens a regular file for reading, never through a symbolic link.

    ``alone`` refuses files that have other names too: a stranger's may be another folder's file. Raises
    FileNotFoundError, or PermissionError where ``path`` is a link, device, pipe, socket or folder.
    """
    try:
        # To open some devices is to use them, so the kind is looked at before, and again on what was opened.
        _check_regular(path, path.lstat(), alone)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, _NotRegularError):
        raise
    except OSError as error:
        raise PermissionError(f"{path.name} is a symbolic link or cannot be opened") from error
    try:
        _check_regular(path, os.fstat(descriptor), alone)
    except PermissionError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


@contextmanager
def pinned(folder: Path) -> Iterator[Path]:
    """Opens a resolved folder and returns a path to it that means this folder whatever happens to its name.

    No symbolic link is followed on the way, so a folder that became one since it was resolved is refused.
    Raises OSError.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder.anchor, flags)
    try:
        for part in folder.parts[1:]:
            within = descriptor
            try:
                descriptor = os.open(part, flags, dir_fd=within)
            finally:
                if descriptor != within:
                    os.close(within)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class _NotRegularError(PermissionError):
    """What stands there is no regular file of its own."""


def _check_regular(path: Path, status: os.stat_result, alone: bool) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _NotRegularError(f"{path.name} is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise _NotRegularError(f"{path.name} is not a regular file")
    if alone and status.st_nlink > 1:
        raise _NotRegularError(f"{path.name} has {status.st_nlink} names (hard links)")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands in it twice")
    return result


def _check_texts(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair") from None
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("it holds the character U+0000")


def _not_a_number(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number in it is too large")
    return value
