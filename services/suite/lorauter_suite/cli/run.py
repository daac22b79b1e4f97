"""`lorauter up`, `lorauter demo` and `lorauter doctor`."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lorauter import Client
from lorauter_suite import doctor as checks
from lorauter_suite.cli.context import JsonFlag, data_dir, err, out, print_table
from lorauter_suite.cli.explained import weights
from lorauter_suite.machine import machine, versions
from lorauter_suite.own_keys import API_KEY
from lorauter_suite.seeding import POOL_ID, seed
from lorauter_suite.suite import Addresses, Suite
from lorauter_suite.walkthrough import SEED, Answer, ask, follow_matching, sample_queries

SHOWN = 12
"""Answers that the demo shows."""


def add_commands(root: typer.Typer) -> None:
    """Adds `up`, `demo` and `doctor` to the command."""
    root.command("up")(up)
    root.command("demo")(demo)
    root.command("doctor")(doctor)


def up(
    data: Annotated[
        Path | None, typer.Option(help="Data directory. Default: LORAUTER_DATA, else .lorauter.")
    ] = None,
    empty: Annotated[bool, typer.Option("--empty", help="Do not register the demo pool.")] = False,
) -> None:
    """Run the whole suite on this machine until Ctrl-C."""
    with Suite(data or data_dir(), on_event=_say) as suite:
        found = suite.addresses
        if not empty:
            with found.client() as client:
                seed(client, found.engine_http, lambda _: None)
        out.print(
            f"ready: gateway {found.gateway_http} (gRPC {found.gateway_grpc}) · "
            f"registry {found.registry_http} (gRPC {found.registry_grpc}) · "
            f"router gRPC {found.router_grpc} · key in {suite.data_dir / API_KEY}",
            soft_wrap=True,
            highlight=False,
        )
        suite.wait()


def demo(
    queries_per_task: Annotated[int, typer.Option(min=1, help="Test queries of each task.")] = 12,
    report: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the data here instead of in a temporary folder.")
    ] = None,
) -> None:
    """Do the main job once: register, embed, match, route, generate."""
    started = time.monotonic()
    folder = nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory(prefix="lorauter-demo-")
    with folder as directory, Suite(Path(directory), on_event=_say) as suite:
        found = suite.addresses
        with found.client() as client:
            _say(f"suite up after {time.monotonic() - started:.1f} s")
            _register(client, found)
            _match(client)
            answers = _ask(client, queries_per_task)
    _print_answers(answers)
    _print_figures(answers, time.monotonic() - started, report)


def _register(client: Client, found: Addresses) -> None:
    names: list[str] = []
    seed(client, found.engine_http, names.append)
    adapters = sum(name.startswith("adapter ") for name in names)
    _say(
        f"registered pool {POOL_ID}: {adapters} adapters, {len(names) - adapters} tasks with validation sets"
    )


def _match(client: Client) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("embedding", total=None)
        state = None
        for state in follow_matching(client):
            progress.update(
                bar,
                completed=state.done,
                total=state.total or None,
                description=f"tasks: {state.embedded} embedded, {state.matched} matched of {state.tasks}",
            )
    if state is not None:
        _say(f"matched {state.matched} tasks by measurement: {state.done:,} evaluations, base included")


def _ask(client: Client, queries_per_task: int) -> list[Answer]:
    queries = sample_queries(queries_per_task)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=err
    ) as progress:
        bar = progress.add_task("answering, routed and by the bare base", total=len(queries))
        return ask(client, queries, lambda: progress.advance(bar))


def _print_answers(answers: list[Answer]) -> None:
    one_each = list({answer.query.task: answer for answer in reversed(answers)}.values())[:SHOWN]
    rows = (
        (
            a.query.task,
            _shorten(a.query.text, 40),
            weights(a.routed.served.adapters) or "base",
            f"{_shorten(a.routed.text, 14)} {'✓' if a.routed_is_right else '✗'}",
            a.query.expected,
            f"{_shorten(a.base.text, 14)} {'✓' if a.base_is_right else '✗'}",
        )
        for a in one_each
    )
    print_table(("task", "query", "adapters", "answer", "expected", "base alone"), rows)


def _print_figures(answers: list[Answer], seconds: float, report: Path | None) -> None:
    routed, base, total = (
        sum(a.routed_is_right for a in answers),
        sum(a.base_is_right for a in answers),
        len(answers),
    )
    figures = {
        "queries": total,
        "routed_right": routed,
        "base_right": base,
        "seed": SEED,
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(),
    }
    out.print(
        f"\n{routed} of {total} right with routing ({routed / total:.1%}), "
        f"{base} by the base alone ({base / total:.1%}); {seconds:.0f} s",
        highlight=False,
    )
    if report is not None:
        report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def doctor(as_json: JsonFlag = False) -> None:
    """Say what this machine lacks, and what to do about it."""
    results = checks.examine(data_dir())
    if as_json:
        print(json.dumps([{"name": r.name, "ok": r.ok, "detail": r.detail} for r in results], indent=2))
    else:
        print_table(("", "check", ""), (("ok" if r.ok else "no", r.name, r.detail) for r in results))
    if not all(r.ok for r in results):
        raise typer.Exit(1)


def _shorten(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _say(line: str) -> None:
    err.print(line, highlight=False, markup=False)
