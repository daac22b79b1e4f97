"""`lorauter affinity`: what was measured."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import ParseDict, ParseError

from lorauter.errors import InvalidArgument
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, PoolOption, connect, print_json, print_table

app = typer.Typer(help="Scores of adapters on tasks.", no_args_is_help=True)


@app.command("list")
def list_all(
    pool: PoolOption = "",
    task: Annotated[str, typer.Option(help="Only this task.")] = "",
    adapter: Annotated[str, typer.Option(help="Only this adapter.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List scores with their standard error and number of examples."""
    with connect() as client:
        found = list(client.registry.list_affinities(pool=pool, task_id=task, adapter_id=adapter))
    if as_json:
        print_json(found)
        return
    rows = (
        (a.task_id, a.adapter_id, f"{100 * a.score:.1f} ± {100 * a.standard_error:.1f}", a.count)
        for a in sorted(found, key=lambda a: (a.task_id, -a.score, a.adapter_id))
    )
    print_table(("task", "adapter", "score %", "examples"), rows)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="CSV with a header, or JSON.", exists=True, dir_okay=False)],
) -> None:
    """Import scores from a file: columns or keys as `affinity list --json` prints them. All or none."""
    text = file.read_text(encoding="utf-8")
    rows: list[Any] = json.loads(text) if file.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    try:
        affinities = [ParseDict(row, pb.Affinity()) for row in rows]
    except (ParseError, TypeError) as error:
        raise InvalidArgument("MALFORMED_AFFINITIES", f"{file}: {error}") from None
    with connect() as client:
        answer = client.registry.import_affinities(affinities=affinities)
    print(f"imported {answer.imported_count}, generation {answer.generation}")
