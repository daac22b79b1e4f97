"""Affinities as CSV: the columns are the fields of an affinity."""

from __future__ import annotations

import csv
import io

from lorauter.errors import InvalidArgument
from lorauter_registry.domain.adapter_requests import AffinityInput

_KNOWN = frozenset(AffinityInput.model_fields)
_REQUIRED = ("task_id", "adapter_id", "score", "count")


def read_affinities(data: bytes) -> list[dict[str, str]]:
    """Returns a mapping for each line after the header; empty cells are left out.

    Raises InvalidArgument (MALFORMED_CSV, MISSING_FIELD, INVALID_FIELD).
    """
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument("MALFORMED_CSV", f"the body is not CSV in UTF-8: {error}") from None
    names = [name.strip() for name in rows[0]] if rows else []
    for name in _REQUIRED:
        if name not in names:
            raise InvalidArgument("MISSING_FIELD", f"the header lacks the column {name}", field=name)
    for name in names:
        if name not in _KNOWN:
            raise InvalidArgument(
                "INVALID_FIELD", f"column {name[:80]!r} is not known: use {', '.join(sorted(_KNOWN))}"
            )
    if len(set(names)) != len(names):
        raise InvalidArgument("INVALID_FIELD", "a column stands in the header twice")
    values = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(names):
            raise InvalidArgument(
                "MALFORMED_CSV",
                f"line {number} has {len(row)} cells, the header {len(names)}",
                line=str(number),
            )
        values.append({name: cell.strip() for name, cell in zip(names, row, strict=True) if cell.strip()})
    return values
