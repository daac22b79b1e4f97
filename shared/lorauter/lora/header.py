"""Reads a safetensors header by hand: the layout is known good before any data is touched."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from lorauter.lora.strict import parse_object

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Bytes of one element by safetensors dtype."""

MAX_DIMENSIONS = 8
_ARCHIVE_TAIL = 65_535 + 22
"""An archive's last record, and the longest comment after it."""

_ARCHIVE_END, _ARCHIVE64_END, _ARCHIVE_ENTRY = b"PK\x05\x06", b"PK\x06\x07", b"PK\x01\x02"
_PICKLE_STARTS = (b"PK\x03\x04", *(bytes((0x80, version)) for version in range(2, 6)))


class MalformedFileError(Exception):
    """The file is not a sound safetensors file. ``kind`` is "corrupt", "truncated", "pickle" or "large"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies: ``begin`` and ``end`` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: BufferedReader, max_header_bytes: int, max_tensors: int) -> dict[str, Tensor]:
    """Returns the tensors of an open safetensors file by name.

    The offsets are proven to be contiguous from the header's end to the file's end, and each tensor's
    length to fit its dtype and shape. Raises MalformedFileError.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if len(start) < 8:
        raise MalformedFileError("truncated", f"it has {len(start)} bytes, less than a header's length field")
    length: int = struct.unpack("<Q", start)[0]
    if length > min(max_header_bytes, size - 8):
        raise _bad_length(start, length, max_header_bytes, size)
    header = file.read(length)
    if len(header) != length or not header.startswith(b"{"):
        raise MalformedFileError(_pickle_or(start, "corrupt"), "its header is not a JSON object")
    try:
        entries = parse_object(header)
    except ValueError as error:
        raise MalformedFileError("corrupt", f"its header is not sound JSON: {error}") from None
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedFileError("corrupt", "its __metadata__ is not an object of texts")
    if len(entries) > max_tensors:
        raise MalformedFileError("large", f"it holds {len(entries)} tensors; {max_tensors} are allowed")
    tensors = {name: _tensor(name, entry, 8 + length) for name, entry in entries.items()}
    _check_layout(tensors, 8 + length, size)
    return tensors


def ends_as_archive(file: BufferedReader) -> bool:
    """Tells whether zip readers, which begin at the end, would take the file for an archive with entries.

    By chance, weights look so once in far more than 2**40 files.
    """
    size = os.fstat(file.fileno()).st_size
    begin = max(0, size - _ARCHIVE_TAIL)
    file.seek(begin)
    tail = file.read(_ARCHIVE_TAIL)
    place = tail.rfind(_ARCHIVE_END)
    while place >= 0:
        directory = tail[place + 12 : place + 20]
        if len(directory) == 8 and _lists_entries(file, begin + place, *struct.unpack("<II", directory)):
            return True
        place = tail.rfind(_ARCHIVE_END, 0, place)
    return False


def _lists_entries(file: BufferedReader, end: int, length: int, offset: int) -> bool:
    if 0xFFFFFFFF in (length, offset):
        file.seek(max(0, end - 20))
        return file.read(4) == _ARCHIVE64_END
    if not 0 < length <= end:
        return False
    file.seek(end - length)
    return file.read(4) == _ARCHIVE_ENTRY


def _bad_length(start: bytes, length: int, max_header_bytes: int, size: int) -> MalformedFileError:
    kind = _pickle_or(start, "")
    if kind:
        return MalformedFileError(kind, "it is a pickle or a zip archive under another name")
    if length > max_header_bytes:
        return MalformedFileError(
            "corrupt", f"its header claims {length} bytes; at most {max_header_bytes} pass"
        )
    return MalformedFileError("truncated", f"its header claims {length} bytes, but the file has {size}")


def _pickle_or(start: bytes, otherwise: str) -> str:
    return "pickle" if start.startswith(_PICKLE_STARTS) else otherwise


def _tensor(name: str, entry: Any, data_start: int) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MalformedFileError("corrupt", f"tensor {name[:120]!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise MalformedFileError("corrupt", f"tensor {name[:120]!r} has an unknown dtype")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise MalformedFileError("corrupt", f"tensor {name[:120]!r} has no sound shape")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedFileError("corrupt", f"tensor {name[:120]!r} has no sound data_offsets")
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise MalformedFileError("corrupt", f"tensor {name[:120]!r} has offsets that do not fit its shape")
    return Tensor(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, int) and not isinstance(part, bool) and 0 <= part < 2**63 for part in value
    )


def _check_layout(tensors: Mapping[str, Tensor], data_start: int, size: int) -> None:
    end = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            raise MalformedFileError("corrupt", f"tensor {name[:120]!r} overlaps another or leaves a gap")
        end = tensor.end
    if size < end:
        raise MalformedFileError("truncated", f"it has {size} bytes, but its header describes {end}")
    if size > end:
        raise MalformedFileError("corrupt", f"it has {size - end} bytes after its last tensor")
