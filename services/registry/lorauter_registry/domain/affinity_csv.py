"""Affinities as CSV: a header that names an affinity's fields, then one affinity a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lorauter.errors import InvalidArgument, LorauterError
from lorauter_registry.domain.affinity_requests import (
    AFFINITY_FIELDS,
    MAX_AFFINITIES,
    AffinityInput,
    unknown_field,
)
from lorauter_registry.domain.fields import refusal
from lorauter_registry.domain.resources import Affinity

_REQUIRED = ("task_id", "adapter_id", "score", "count")
_AFFINITY = TypeAdapter(AffinityInput)


def read_affinities(data: bytes) -> tuple[AffinityInput, ...]:
    """Returns the affinities of all lines; an empty cell counts as left out, a blank line as none.

    Raises InvalidArgument (MALFORMED_CSV, MISSING_FIELD, INVALID_FIELD, TOO_MANY_AFFINITIES, …) with
    the metadata ``line``, counted from 1, where a line is wrong.
    """
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), strict=True)
    values: list[AffinityInput] = []
    try:
        names = [name.strip() for name in next(rows, [])]
        _check_header(names)
        for row in rows:
            if not row:
                continue
            if len(values) == MAX_AFFINITIES:
                raise InvalidArgument(
                    "TOO_MANY_AFFINITIES",
                    f"an import has at most {MAX_AFFINITIES} affinities: send several; nothing was imported",
                )
            values.append(_affinity(names, row, rows.line_num))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument("MALFORMED_CSV", f"the body is not CSV in UTF-8: {error}") from None
    return tuple(values)


def _check_header(names: Sequence[str]) -> None:
    for name in _REQUIRED:
        if name not in names:
            raise InvalidArgument("MISSING_FIELD", f"the header lacks the column {name}", field=name)
    for name in names:
        if name not in AFFINITY_FIELDS:
            raise unknown_field(name)
    if len(set(names)) != len(names):
        raise InvalidArgument("INVALID_FIELD", "a column stands in the header twice")


def _affinity(names: Sequence[str], row: Sequence[str], line: int) -> AffinityInput:
    if len(row) != len(names):
        problem = f"the line has {len(row)} cells, the header {len(names)}"
        raise _at(line, InvalidArgument("MALFORMED_CSV", problem))
    try:
        return _AFFINITY.validate_python(
            {name: cell.strip() for name, cell in zip(names, row, strict=True) if cell.strip()}
        )
    except ValidationError as error:
        raise _at(line, refusal(error)) from None
    except LorauterError as error:
        raise _at(line, error) from None


def _at(line: int, error: LorauterError) -> InvalidArgument:
    return InvalidArgument(
        error.reason,
        f"line {line}: {error.message}; nothing was imported",
        **{**error.metadata, "line": str(line)},
    )


def write_header() -> str:
    """Returns the first line of an export: all columns that an import takes."""
    return ",".join(AFFINITY_FIELDS) + "\r\n"


def write_affinities(affinities: Iterable[Affinity]) -> str:
    """Returns a line for each affinity, under the columns of write_header(); read_affinities() reads them."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    for affinity in affinities:
        values = affinity.model_dump(mode="json")
        writer.writerow([_cell(values[name]) for name in AFFINITY_FIELDS])
    return lines.getvalue()


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
