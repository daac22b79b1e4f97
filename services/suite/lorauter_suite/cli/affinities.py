"""`lorauter affinity`: what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lorauter import Client
from lorauter.errors import FailedPrecondition, InvalidArgument, LorauterError
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli import affinity_files, evidence
from lorauter_suite.cli.context import JsonFlag, PoolOption, connect, err, out, print_json

app = typer.Typer(help="Scores of adapters on tasks.", no_args_is_help=True)

PAGE_SIZE = 1_000
SHOWN = 10
"""Adapters of each task that a table shows."""
PLOTTED = 60
"""Adapters that a heat map shows: as many as a page has room for."""

TaskOption = Annotated[str, typer.Option("--task", help="Only this task.")]
AdapterOption = Annotated[str, typer.Option("--adapter", help="Only this adapter.")]


@app.command("list")
def list_all(
    pool: PoolOption = "",
    task: TaskOption = "",
    adapter: AdapterOption = "",
    top: Annotated[
        int | None, typer.Option(min=0, help="The best N adapters of each task; 0 is all.", metavar="N")
    ] = None,
    eligible: Annotated[
        bool, typer.Option("--eligible", help="Only adapters that beat the base beyond the error.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for programs.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List scores, best first: ± is the standard error, of a lift the 95 % interval.

    A table shows the best 10 adapters of each task and the base; --json and --csv have all.
    """
    with connect() as client:
        found = _measured(client, pool, task, adapter)
        quarantined = {} if as_json or as_csv else _quarantined(client, pool)
    if eligible:
        found = [one for one in found if one.eligible or one.adapter_id == evidence.BASE]
    groups = evidence.by_task(found)
    shown = {name: evidence.shortened(best, top or 0) for name, best in groups.items()}
    flat = [one for best in shown.values() for one in best]
    if as_json:
        print_json(flat)
    elif as_csv:
        print(affinity_files.to_csv(flat), end="")
    else:
        _print_groups(groups, SHOWN if top is None else top, quarantined)
        if top is None and any(len(best) > SHOWN + 1 for best in groups.values()):
            err.print("--top 0 shows all", style="dim")
        _print_quarantined(quarantined)


@app.command("export")
def export_file(
    file: Annotated[Path, typer.Argument(help="A .csv or .json file; - prints CSV.", allow_dash=True)],
    pool: PoolOption = "",
    task: TaskOption = "",
    adapter: AdapterOption = "",
) -> None:
    """Write affinities with all their evidence to a file that `affinity import` reads."""
    to_stdout = str(file) == "-"
    write = affinity_files.to_csv
    if not to_stdout and affinity_files.format_of(file) == "json":
        write = affinity_files.to_json
    with connect() as client:
        found = _measured(client, pool, task, adapter)
    if to_stdout:
        print(write(found), end="")
        return
    _write(file, write(found).encode())
    print(f"exported {len(found):,} affinities to {file}")


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="CSV with a header, or JSON.", exists=True, dir_okay=False)],
) -> None:
    """Import scores from a file as `affinity export` writes it. All or none."""
    affinities, places = affinity_files.read(file)
    with connect() as client:
        try:
            answer = client.registry.import_affinities(affinities=affinities)
        except LorauterError as error:
            raise _placed(error, file, places) from None
    print(f"imported {answer.imported_count:,}, generation {answer.generation}")


@app.command("plot")
def plot(
    to: Annotated[Path, typer.Option("--out", help="The picture: a .png or .svg file.")],
    pool: PoolOption = "",
    adapters: Annotated[int, typer.Option(min=1, help="Show the best N adapters at most.")] = PLOTTED,
) -> None:
    """Draw a heat map of tasks and adapters."""
    if to.suffix.lower() not in (".png", ".svg"):
        raise InvalidArgument("UNKNOWN_FORMAT", f"{to}: name a file that ends with .png or .svg")
    # matplotlib takes most of a second to import
    from lorauter_suite.cli.heat_map import arrange
    from lorauter_suite.cli.heat_map_figure import draw, save

    with connect() as client:
        tasks = list(client.registry.list_tasks(pool=pool, page_size=PAGE_SIZE))
        found = _measured(client, pool, "", "")
    pools = sorted({one.pool for one in tasks})
    if len(pools) > 1:
        raise InvalidArgument("POOL_REQUIRED", f"there are several pools: pass --pool {' or '.join(pools)}")
    if not found:
        raise FailedPrecondition(
            "NOTHING_MEASURED", "no affinity was measured yet: run `lorauter match` first"
        )
    grid = arrange(tasks, found, adapters)
    _write(to, save(draw(grid), to.suffix.lower().removeprefix(".")))
    print(
        f"{to}: {len(grid.tasks)} tasks, {len(grid.columns)} of {grid.adapter_count:,} adapters and the base"
    )


def _measured(client: Client, pool: str, task: str, adapter: str) -> list[pb.Affinity]:
    return list(
        client.registry.list_affinities(pool=pool, task_id=task, adapter_id=adapter, page_size=PAGE_SIZE)
    )


def _quarantined(client: Client, pool: str) -> dict[str, str]:
    state = pb.ADAPTER_STATE_QUARANTINED
    found = client.registry.list_adapters(pool=pool, state=state, page_size=PAGE_SIZE)
    return {one.id: one.latest.state_reason for one in found}


def _print_groups(
    groups: Mapping[str, Sequence[pb.Affinity]], top: int, quarantined: Mapping[str, str]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("adapter", no_wrap=True)
    for name in ("version", "score %", "examples", "routed %", "lift ± 95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("round")
    table.add_column("")
    for task, best in groups.items():
        table.add_row(f"[bold cyan]{escape(task)}[/]")
        shown = evidence.shortened(best, top)
        for one in shown:
            table.add_row(
                *_cells(one, one.adapter_id in quarantined),
                style="dim" if one.adapter_id == evidence.BASE else "",
            )
        if len(shown) < len(best):
            table.add_row(f"  … {len(best) - len(shown):,} more", style="dim")
    out.print(table)


def _print_quarantined(quarantined: Mapping[str, str]) -> None:
    for name, reason in list(quarantined.items())[:SHOWN]:
        err.print(f"quarantined: {name}: {reason}", style="yellow", markup=False, soft_wrap=True)
    if len(quarantined) > SHOWN:
        more = f"… and {len(quarantined) - SHOWN:,} more: `lorauter adapter list --state quarantined`"
        err.print(more, style="yellow", markup=False, soft_wrap=True)


def _cells(one: pb.Affinity, is_quarantined: bool) -> tuple[str, ...]:
    mark = "[green]eligible[/]" if one.eligible else ""
    return (
        f"  {escape(one.adapter_id)}",
        str(one.adapter_version or "-"),
        evidence.score_text(one),
        f"{one.count:,}",
        evidence.routed_text(one),
        evidence.lift_text(one),
        evidence.round_text(one),
        "[yellow]quarantined[/]" if is_quarantined else mark,
    )


def _placed(error: LorauterError, file: Path, places: Sequence[str]) -> LorauterError:
    """Says where in the file an affinity stands that the registry names by its index."""

    def place(found: re.Match[str]) -> str:
        number, field = int(found[1]), found[2]
        where = f"{file}, {places[number] if number < len(places) else found[0]}"
        return f"{where}, {field}" if field else where

    message = re.sub(r"affinities\[(\d+)\](?:\.(\w+))?", place, error.message)
    return type(error)(error.reason, message, **error.metadata)


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise InvalidArgument("FILE_NOT_WRITTEN", f"{file}: {error.strerror}") from None
