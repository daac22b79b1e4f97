"""`lorauter replay`: what recorded decisions would be with another profile or strategy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lorauter.errors import NotFound
from lorauter_suite.cli.context import JsonFlag, connect, err, print_fields, print_table
from lorauter_suite.cli.operations import read_duration
from lorauter_suite.cli.profiles import named
from lorauter_suite.cli.replaying import Comparison, compare, recorded

SHOWN = 10
"""Changes that a table shows; --json has all."""


def add_commands(root: typer.Typer) -> None:
    """Adds `replay` to the command."""
    root.command("replay")(replay)


def replay(
    pool: Annotated[str, typer.Argument(help="The pool.")],
    profile: Annotated[str, typer.Option(help="Another profile: its digest, or how it begins.")] = "",
    strategy: Annotated[str, typer.Option(help="Another routing strategy.")] = "",
    since: Annotated[str, typer.Option(help="How far back: 90s, 10m, 24h.")] = "24h",
    most: Annotated[int, typer.Option(min=1, help="The most decisions, newest first.")] = 1_000,
    as_json: JsonFlag = False,
) -> None:
    """Decide recorded queries anew, today's way and another, and say what differs.

    Exit codes: 0 done, 1 refused, or nothing there to replay.
    """
    if not profile and not strategy:
        raise typer.BadParameter("say what to try: --profile, --strategy or both")
    began = datetime.now(UTC) - read_duration(since, "--since")
    with connect() as client:
        known = list(client.registry.list_profiles(pool=pool)) if profile else []
        constants = named(pool, profile, known).constants if profile else {}
        encoder_digest = client.router.get_snapshot(pool=pool).encoder_digest
        decisions = list(recorded(client, pool, began, most))
        found = _followed(compare(client, decisions, encoder_digest, strategy, constants), len(decisions))
    if not found.replayed:
        raise NotFound("NOTHING_TO_REPLAY", f"{_none(pool, since, found)}: route some, or look further back")
    if as_json:
        print(json.dumps(_plain(pool, found), indent=2, ensure_ascii=False))
    else:
        _print(found)


def _followed(comparisons: Iterable[Comparison], total: int) -> Comparison:
    columns = (TextColumn("replayed"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found = Comparison()
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=total)
        for found in comparisons:
            progress.update(task, completed=found.replayed + found.left_out.total())
    return found


def _none(pool: str, since: str, found: Comparison) -> str:
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
    return f"pool {pool} has no decision of the last {since} to replay" + (f" ({reasons})" if reasons else "")


def _print(found: Comparison) -> None:
    def share(count: int) -> str:
        return f"{count:,} ({100 * count / found.replayed:.1f} %)"

    before, after, as_expected = (
        f"{value / found.replayed:.3f}" for value in (found.before, found.after, found.as_expected)
    )
    print_fields(
        (
            ("decisions replayed", f"{found.replayed:,}"),
            ("best single changed", share(found.best_single_changed)),
            ("action changed", share(found.action_changed)),
            ("expected utility", f"{before} before, {after} after, both as today's way expects"),
            ("", f"{as_expected} after, as the other way expects itself"),
            *((f"left out: {reason}", f"{count:,}") for reason, count in found.left_out.items()),
        )
    )
    changes = found.changes(SHOWN)
    if changes:
        print_table(
            ("served before", "after", "decisions", "such as"),
            ((one.before, one.after, f"{one.count:,}", one.example) for one in changes),
        )


def _plain(pool: str, found: Comparison) -> dict[str, Any]:
    return {
        "pool": pool,
        "replayed": found.replayed,
        "best_single_changed": found.best_single_changed,
        "action_changed": found.action_changed,
        "expected_utility": {
            "before": found.before / found.replayed,
            "after": found.after / found.replayed,
            "after_as_expected": found.as_expected / found.replayed,
        },
        "changes": [
            {"before": one.before, "after": one.after, "count": one.count, "example": one.example}
            for one in found.changes()
        ],
        "left_out": dict(found.left_out),
    }
