"""Rows as lines of JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from lorauter.errors import LorauterError, UnprocessableRequest
from lorauter_registry.domain.archives.columns import Row
from lorauter_registry.domain.archives.framing import refused
from lorauter_registry.domain.archives.rows import ROWS
from lorauter_registry.domain.fields import refusal

MAX_LINE_BYTES = 32 * 1024 * 1024


def to_line(columns: Mapping[str, Any]) -> bytes:
    """Returns a row as a line: its columns by name, times in UTC, bytes in Base64, NaN as null."""
    finite = {name: _finite(value) for name, value in columns.items()}
    return json.dumps(finite, ensure_ascii=False, separators=(",", ":"), default=_plain).encode() + b"\n"


def to_row(table: str, line: bytes, number: int) -> Row:
    """Returns the row of a line.

    Raises UnprocessableRequest (ARCHIVE_ROW_INVALID), which names the table and the line.
    """
    try:
        return ROWS[table].model_validate(json.loads(line))
    except ValidationError as error:
        problem = refusal(error).message
    except LorauterError as error:
        problem = error.message
    except (ValueError, RecursionError):
        problem = "is not JSON in UTF-8"
    raise invalid(table, number, problem)


def invalid(table: str, number: int, problem: str) -> UnprocessableRequest:
    """Returns the error for a row, with its place."""
    where = f"has a wrong row, rows/{table}.jsonl, line {number}: {problem}"
    return refused("ARCHIVE_ROW_INVALID", where, table=table, line=str(number))


class Lines:
    """Cuts pieces that may end anywhere into the lines of a table's file."""

    def __init__(self, table: str) -> None:
        self.count = 0
        self.table = table
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yields the lines that are complete; raises UnprocessableRequest (ARCHIVE_ROW_INVALID)."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self.count += 1
            yield line
        if len(self._rest) > MAX_LINE_BYTES:
            raise invalid(self.table, self.count + 1, f"is over {MAX_LINE_BYTES} bytes")

    def close(self) -> None:
        """Says that the file has ended; raises UnprocessableRequest (ARCHIVE_ROW_INVALID)."""
        if self._rest:
            raise invalid(self.table, self.count + 1, "lacks the end of the line")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list) and value and isinstance(value[0], float):
        return [each if math.isfinite(each) else None for each in value]
    return value


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(value).decode()
    raise TypeError(f"no column holds a {type(value).__name__}")
