"""`lorauter match` and `lorauter operation`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, PoolOption, connect, err, print_json, print_table
from lorauter_suite.cli.watching import follow, is_unfinished, outcome, state_of

EXIT_UNFINISHED = 4
"""The operation ended before its work was done: it was cancelled, or its budget was spent."""

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")

app = typer.Typer(help="Long work with progress.", no_args_is_help=True)


def add_commands(root: typer.Typer) -> None:
    """Adds `match` and `operation` to the command."""
    root.command("match")(match)
    root.add_typer(app, name="operation")


def match(
    pool: Annotated[str, typer.Argument(help="The pool.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Only this adapter, and the base.")] = None,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure again what is measured.")] = False,
    strategy: Annotated[
        str, typer.Option(help="What is measured next: default, paper or exhaustive.")
    ] = "default",
    max_evaluations: Annotated[
        int | None, typer.Option(help="Stop before more evaluations; one is one adapter on one example.")
    ] = None,
    max_time: Annotated[
        str | None, typer.Option(help="Stop this long after it began: 90s, 10m, 1h30m.")
    ] = None,
    priority: Annotated[int, typer.Option(help="-100 to 100; higher ones are worked on first.")] = 0,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until it is done.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure adapters on tasks. New tasks and adapters are measured without this.

    What is measured already is not measured again. With --watch the exit code is 0 when all is measured, 4
    when it was cancelled or its budget was spent, 1 when it failed; Ctrl-C leaves it running.
    """
    limit = None if max_time is None else Duration()
    if limit is not None:
        limit.FromTimedelta(read_duration(max_time or ""))
    with connect() as client:
        operation = client.registry.start_matching(
            pool=pool,
            task_ids=task or [],
            adapter_ids=adapter or [],
            remeasure=remeasure,
            strategy=strategy,
            max_evaluations=max_evaluations,
            max_duration=limit,
            priority=priority,
        )
        if watch:
            operation = follow(client, operation.id)
    _finish(operation, as_json)
    if not watch and not as_json:
        err.print(
            f"`lorauter operation watch {operation.id}` shows its progress", markup=False, soft_wrap=True
        )


@app.command("watch")
def watch_operation(operation: str, as_json: JsonFlag = False) -> None:
    """Show an operation's progress until it ends. Exit codes are those of `match --watch`."""
    with connect() as client:
        _finish(follow(client, operation), as_json)


@app.command("list")
def list_all(pool: PoolOption = "", as_json: JsonFlag = False) -> None:
    """List operations, newest first."""
    with connect() as client:
        found = list(client.registry.list_operations(pool=pool))
    if as_json:
        print_json(found)
        return
    rows = ((o.id, o.kind, o.pool, state_of(o), f"{o.done}/{o.total}", o.message or o.error) for o in found)
    print_table(("operation", "kind", "pool", "state", "done", ""), rows)


@app.command("cancel")
def cancel(operation: str, as_json: JsonFlag = False) -> None:
    """Ask an operation to stop; what it measured is kept."""
    with connect() as client:
        _print(client.registry.cancel_operation(id=operation), as_json)


def read_duration(text: str, option: str = "--max-time") -> timedelta:
    """Returns a duration such as 90, 90s, 10m or 1h30m; raises typer.BadParameter."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        raise typer.BadParameter(f"{text!r} is no duration: write 90s, 10m or 1h30m", param_hint=option)
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def _finish(operation: pb.Operation, as_json: bool) -> None:
    _print(operation, as_json)
    if operation.HasField("end_time") and is_unfinished(operation):
        raise typer.Exit(EXIT_UNFINISHED)


def _print(operation: pb.Operation, as_json: bool) -> None:
    if as_json:
        print_json(operation)
    else:
        print(outcome(operation))
