"""Affinities as CSV and JSON: the columns, or keys, are the fields of an affinity."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError

from lorauter.errors import InvalidArgument
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import to_dict

FIELDS = tuple(field.name for field in pb.Affinity.DESCRIPTOR.fields)
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def format_of(path: Path) -> str:
    """Returns `csv` or `json` by a file's name; raises InvalidArgument (UNKNOWN_FORMAT)."""
    name = path.suffix.lower().removeprefix(".")
    if name not in ("csv", "json"):
        raise InvalidArgument("UNKNOWN_FORMAT", f"{path}: name a file that ends with .csv or .json")
    return name


def to_csv(affinities: Iterable[pb.Affinity]) -> str:
    """Returns a header and a line for each affinity; what is absent is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for one in affinities:
        writer.writerow({name: _cell(value) for name, value in to_dict(one).items()})
    return text.getvalue()


def to_json(affinities: Iterable[pb.Affinity]) -> str:
    """Returns a list of objects, as `affinity list --json` prints it."""
    return json.dumps([to_dict(one) for one in affinities], indent=2, ensure_ascii=False) + "\n"


def read(path: Path) -> tuple[list[pb.Affinity], list[str]]:
    """Returns the affinities of a file and, for each, where it stands, such as `line 3`.

    Raises InvalidArgument (UNKNOWN_FORMAT, MALFORMED_AFFINITIES), naming the place.
    """
    kind = format_of(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _csv_rows(text) if kind == "csv" else _json_rows(text)
    except (ValueError, csv.Error) as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise InvalidArgument("MALFORMED_AFFINITIES", f"{path}: {error}; nothing was imported") from None
    affinities = []
    for place, row in rows:
        try:
            affinities.append(ParseDict(row, pb.Affinity()))
        except (ParseError, ValueError, TypeError, AttributeError) as error:
            raise InvalidArgument(
                "MALFORMED_AFFINITIES", f"{path}, {place}: {error}; nothing was imported"
            ) from None
    return affinities, [place for place, _ in rows]


def _csv_rows(text: str) -> list[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = [name.strip() for name in next(reader, [])]
    unknown = [name for name in names if name not in FIELDS]
    if unknown or not names:
        raise ValueError(
            f"the header lacks columns, or has unknown ones ({', '.join(unknown) or 'it is empty'}): "
            f"known are {', '.join(FIELDS)}"
        )
    rows: list[tuple[str, Any]] = []
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(names):
            raise ValueError(f"line {reader.line_num} has {len(cells)} cells, the header {len(names)}")
        filled = {name: cell.strip() for name, cell in zip(names, cells, strict=True) if cell.strip()}
        rows.append((f"line {reader.line_num}", {name: _typed(name, cell) for name, cell in filled.items()}))
    return rows


def _json_rows(text: str) -> list[tuple[str, Any]]:
    values = json.loads(text)
    if isinstance(values, dict):
        values = values.get("affinities")
    if not isinstance(values, list):
        raise ValueError("it is not a list of affinities")
    return [(f"item {number}", value) for number, value in enumerate(values, start=1)]


def _typed(name: str, cell: str) -> str | bool:
    field = pb.Affinity.DESCRIPTOR.fields_by_name[name]
    return BOOLEANS.get(cell.lower(), cell) if field.type == field.TYPE_BOOL else cell


def _cell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
