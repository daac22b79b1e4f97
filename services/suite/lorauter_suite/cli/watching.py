"""How far an operation is: a live display on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lorauter import Client
from lorauter.errors import DeadlineExceeded, FailedPrecondition
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.cli.context import err, state_name

EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells have it."""

PLAIN_SECONDS = 5.0
"""At most so long between two plain lines while evaluations are done; a task that is done prints one too."""

BAR_WIDTH = 28


class View:
    """An operation with its pace. ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.operation = pb.Operation()
        self._pace = Progress(get_time=clock, auto_refresh=False)
        """Estimates the speed; it knows no total, since a new one makes it forget what it saw."""

    def update(self, operation: pb.Operation) -> None:
        """Takes the newest state of the operation."""
        self.operation = operation
        if not self._pace.tasks:
            # what was done before is no part of the speed
            self._pace.advance(self._pace.add_task("", total=None, completed=operation.done), 0)
        self._pace.update(self._pace.task_ids[0], completed=operation.done)

    def line(self) -> str:
        """Returns one plain line."""
        matching = self.operation.matching
        parts = [f"{state_of(self.operation).lower()}: {self._counted()}", *self._paced()]
        if matching.task_count:
            parts.insert(1, f"{matching.done_task_count:,} of {matching.task_count:,} tasks")
        if matching.alive:
            parts.append(f"alive {_alive(matching)}")
        if matching.quarantined_count:
            parts.append(f"{matching.quarantined_count:,} quarantined")
        return ", ".join(parts)

    def __rich__(self) -> RenderableType:
        """Returns what a terminal shows."""
        operation, matching = self.operation, self.operation.matching
        if not operation.id:
            return Text()
        grid = Table.grid(padding=(0, 2))
        grid.add_row("evaluations", _bar(operation.done, operation.total), self._counted(""))
        if self._paced():
            grid.add_row("", " · ".join(self._paced()))
        if matching.task_count:
            done = f"{matching.done_task_count:,} of {matching.task_count:,} done"
            grid.add_row("tasks", _bar(matching.done_task_count, matching.task_count), done)
        if matching.alive:
            grid.add_row("alive by round", Text(_alive(matching), style="bold"), "adapters, over all tasks")
        if matching.quarantined_count:
            grid.add_row("quarantined", Text(f"{matching.quarantined_count:,}", style="yellow"), "adapters")
        strategy = f" by {matching.strategy}" if matching.strategy else ""
        head = Text.assemble(
            (f"{operation.kind} of {operation.pool}{strategy}", "bold"),
            f"  {state_of(operation)}  {operation.message}".rstrip(),
        )
        return Group(head, grid)

    def _counted(self, unit: str = " evaluations") -> str:
        operation = self.operation
        if not operation.total:
            return f"{operation.done:,}{unit}"
        about = "" if operation.HasField("end_time") else "about "
        return f"{operation.done:,} of {about}{operation.total:,}{unit}"

    def _paced(self) -> list[str]:
        if not self._pace.tasks or self.operation.HasField("end_time"):
            return []
        speed = self._pace.tasks[0].speed
        if not speed:
            return []
        left = max(self.operation.total - self.operation.done, 0) / speed
        return [f"{speed:,.0f}/s", f"{timedelta(seconds=round(left))} left"]


def follow(client: Client, operation_id: str, console: Console = err) -> pb.Operation:
    """Shows an operation's progress until it ends, and returns it.

    Raises FailedPrecondition (OPERATION_FAILED) if it failed. Ctrl-C leaves it running, says how to see it
    again or stop it, and exits with 130.
    """
    try:
        operation = _show(_updates(client, operation_id), console)
    except KeyboardInterrupt:
        console.print(
            f"\nthe operation goes on\n  lorauter operation watch {operation_id}   shows it again\n"
            f"  lorauter operation cancel {operation_id}  stops it",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if operation.state == pb.OPERATION_STATE_FAILED:
        raise FailedPrecondition("OPERATION_FAILED", f"operation {operation.id} failed: {operation.error}")
    return operation


def outcome(operation: pb.Operation) -> str:
    """Returns one line about an operation: its id, state and counts, and what is left if it was stopped."""
    matching = operation.matching
    parts = [f"{operation.id} {state_of(operation)}"]
    if operation.total or operation.done:
        parts.append(f"{operation.done:,} of {operation.total:,} evaluations")
    if matching.task_count:
        parts.append(f"{matching.done_task_count:,} of {matching.task_count:,} tasks")
    if matching.quarantined_count:
        parts.append(f"{matching.quarantined_count:,} adapters quarantined")
    if operation.message or operation.error:
        parts.append(operation.error or operation.message)
    line = ", ".join(parts)
    if operation.HasField("end_time") and is_unfinished(operation):
        tasks = matching.task_count - matching.done_task_count
        left = [f"{tasks:,} task{'' if tasks == 1 else 's'}"] if tasks else []
        if operation.total > operation.done:
            left.append(f"about {operation.total - operation.done:,} evaluations")
        line += f"\nleft: {', '.join(left) or 'all of it'}; the same `lorauter match` goes on from there"
    return line


def is_unfinished(operation: pb.Operation) -> bool:
    """Whether an operation ended before its work was done: cancelled, or out of its budget."""
    matching = operation.matching
    return operation.state == pb.OPERATION_STATE_CANCELLED or matching.done_task_count < matching.task_count


def state_of(operation: pb.Operation) -> str:
    """Returns the operation's state, such as `RUNNING`."""
    return state_name(pb.OperationState.Name(operation.state), "OPERATION_STATE_")


def _updates(client: Client, operation_id: str) -> Iterator[pb.Operation]:
    while True:
        try:
            yield from client.registry.watch_operation(id=operation_id)
            return
        except DeadlineExceeded:  # a matching may take longer than a call may
            continue


def _show(updates: Iterator[pb.Operation], console: Console) -> pb.Operation:
    view = View()
    if console.is_terminal:
        with Live(view, console=console, refresh_per_second=4):
            for operation in updates:
                view.update(operation)
        return view.operation
    printed: tuple[float, int, int] | None = None
    for operation in updates:
        view.update(operation)
        now, tasks = time.monotonic(), operation.matching.done_task_count
        is_news = (
            printed is None or (operation.state, tasks) != printed[1:] or now - printed[0] > PLAIN_SECONDS
        )
        if is_news:
            printed = (now, operation.state, tasks)
            console.print(view.line(), markup=False, highlight=False, soft_wrap=True)
    return view.operation


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=total or None, completed=done, width=BAR_WIDTH, pulse=not total)


def _alive(matching: pb.MatchingProgress) -> str:
    return " → ".join(f"{count:,}" for count in matching.alive)
