"""What the matching benchmark found, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.flan_pools import REGIMES

Report = Mapping[str, Any]


def print_report(report: Report, out: Console) -> None:
    """Prints a report of benchmarks.matching; `replay` only where it has one."""
    for part in (_pool, _live, _throughput):
        for shown in part(report):
            out.print(shown)
    if "replay" in report:
        for shown in _replay(report["replay"]):
            out.print(shown)
    out.print(f"{report['seconds']:.0f} s: {report['seconds_by_part']}", style="dim")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=place == 0)
    return table


def _pool(report: Report) -> Iterator[Table | str]:
    table = _table(
        f"{report['adapters']:,} noisy adapters, {report['tasks']} tasks, {report['orders']} orders of "
        "examples; hard: one adapter of the pool is any good",
        *("", "evaluations", "regret", "worst task", "hard: evaluations", "regret", "worst task"),
    )
    easy = report["strategies"] | {name: row["easy"] for name, row in report["curve"].items()}
    hard = report["hard"] | {name: row["hard"] for name, row in report["curve"].items()}
    for name, row in easy.items():
        table.add_row(name, *_cells(row), *_cells(hard[name]))
    yield table
    for pool, row in report["default_minus_paper"].items():
        yield f"{pool}: default's regret less paper's {row['difference']:+.4f} ± {row['standard_error']:.4f}"


def _cells(row: Mapping[str, float]) -> tuple[str, str, str]:
    return f"{row['evaluations']:,.0f}", f"{row['mean_regret']:.4f}", f"{row['worst_regret']:.4f}"


def _live(report: Report) -> Iterator[str]:
    found = report["live"]
    yield (
        f"live, {found['adapters']:,} adapters, two tasks: {found['evaluations']:,} evaluations in "
        f"{found['seconds']:.0f} s; registered in {found['registration_seconds']:.0f} s"
    )
    yield (
        f"one adapter more costs {report['incremental']['evaluations_fraction']:.2%} of a full match "
        f"(live: {found['incremental']['evaluations_fraction']:.2%})"
    )
    yield from (f"broken, {name}: {fate}" for name, fate in found["broken"].items())


def _throughput(report: Report) -> Iterator[Table]:
    names = ("ours", "peft_switching", "peft_mixed")
    table = _table("evaluations a second, one thread each", "", *names, "ours / switching", "ours / better")
    for mode, by_examples in report["throughput"].items():
        for examples, row in by_examples.items():
            ours, switching, mixed = (row[name] for name in names)
            ratios = (f"{ours / switching:.2f}", f"{ours / max(switching, mixed):.2f}")
            rates = (f"{row[name]:,.0f}" for name in names)
            table.add_row(f"{mode}, {examples} examples an adapter", *rates, *ratios)
    yield table


def _replay(replay: Report) -> Iterator[Table | str]:
    correlations = ", ".join(f"{real:.2f}" for real in replay["correlation"].values())
    table = _table(
        f"FLAN's 48 real adapters, {replay['seeds']} draws; % of Oracle when routed (correlations "
        f"{correlations}; shown the first)",
        *("", "evaluations", "regret", "worst task", *REGIMES),
    )
    for name, evaluations in replay["evaluations"].items():
        lost, worst = replay["regret"][name], replay["worst_regret"][name]
        routed = (f"{replay['routed'][name][regime]:.1f}" for regime in REGIMES)
        table.add_row(name, f"{evaluations:,.0f}", f"{lost:.4f}", f"{worst:.4f}", *routed)
    yield table
    for name, less in replay["routed_less_exhaustive"].items():
        each = ", ".join(
            f"{regime} {one['difference']:+.2f} ± {one['standard_error']:.2f}" for regime, one in less.items()
        )
        yield f"{name} less exhaustive: {each}"
    yield from _curve(replay)


def _curve(replay: Report) -> Iterator[Table]:
    ours, published = next(iter(replay["curve"].values())), replay["published_relative"]
    table = _table("share of the aligned adapter's score", "", "evaluations", "replayed", "published")
    shown = {**ours, "exhaustive": {key: replay[key]["exhaustive"] for key in ("evaluations", "relative")}}
    for name, row in sorted(shown.items(), key=lambda item: item[1]["evaluations"]):
        evaluations = round(row["evaluations"])
        known = published.get(str(evaluations), "") if name.startswith(("paper", "exhaustive")) else ""
        table.add_row(name, f"{evaluations:,}", f"{row['relative']:.4f}", f"{known}")
    yield table
