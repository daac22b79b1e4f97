"""`lorauter match` and `lorauter operation`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lorauter import Client
from lorauter.errors import FailedPrecondition
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import JsonFlag, PoolOption, connect, err, print_json, print_table, state_name

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
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until it is done.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure adapters on tasks. New tasks and adapters are measured without this."""
    with connect() as client:
        operation = client.registry.start_matching(
            pool=pool, task_ids=task or [], adapter_ids=adapter or [], remeasure=remeasure
        )
        if watch:
            operation = follow(client, operation.id)
    _show(operation, as_json)


@app.command("watch")
def watch_operation(operation: str, as_json: JsonFlag = False) -> None:
    """Show an operation's progress until it is done; fails if it failed."""
    with connect() as client:
        _show(follow(client, operation), as_json)


@app.command("list")
def list_all(pool: PoolOption = "", as_json: JsonFlag = False) -> None:
    """List operations, newest first."""
    with connect() as client:
        found = list(client.registry.list_operations(pool=pool))
    if as_json:
        print_json(found)
        return
    rows = ((o.id, o.kind, o.pool, _state(o), f"{o.done}/{o.total}", o.message or o.error) for o in found)
    print_table(("operation", "kind", "pool", "state", "done", ""), rows)


@app.command("cancel")
def cancel(operation: str, as_json: JsonFlag = False) -> None:
    """Ask an operation to stop; what it measured is kept."""
    with connect() as client:
        _show(client.registry.cancel_operation(id=operation), as_json)


def follow(client: Client, operation_id: str) -> pb.Operation:
    """Draws an operation's progress until it ends; raises FailedPrecondition if it failed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    operation = pb.Operation()
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("matching", total=None)
        for operation in client.registry.watch_operation(id=operation_id):
            progress.update(
                bar,
                completed=operation.done,
                total=operation.total or None,
                description=operation.message or "matching",
            )
    if operation.state == pb.OPERATION_STATE_FAILED:
        raise FailedPrecondition("OPERATION_FAILED", f"operation {operation.id} failed: {operation.error}")
    return operation


def _state(operation: pb.Operation) -> str:
    return state_name(pb.OperationState.Name(operation.state), "OPERATION_STATE_")


def _show(operation: pb.Operation, as_json: bool) -> None:
    if as_json:
        print_json(operation)
    else:
        counted = f"{operation.done}/{operation.total}"
        print(f"{operation.id} {_state(operation)} {counted} {operation.message}".rstrip())
