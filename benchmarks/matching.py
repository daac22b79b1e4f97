"""What matching costs and how well it chooses: `python -m benchmarks.matching [--json PATH] [--flan DIR]`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.live import live
from benchmarks.regrets import NAMES, figures, paired, replay_all
from benchmarks.replay import replay
from benchmarks.table import load_pool_table, measure_pool
from benchmarks.throughput import throughput
from lorauter.matching import Strategy
from lorauter.matching.strategies.default import DefaultStrategy
from lorauter_suite.demo.noisy.__main__ import cache_folder
from lorauter_suite.demo.noisy.recipe import NoisyRecipe
from lorauter_suite.demo.noisy.training import trained_stacks
from lorauter_suite.machine import machine, versions

CURVE: Mapping[str, Strategy] = {
    f"default kept={kept} confidence={confidence:g}": DefaultStrategy(kept=kept, confidence=confidence)
    for kept, confidence in ((3, 0.99), (5, 0.99), (20, 0.99), (40, 0.99), (10, 0.75), (10, 0.9))
}
"""Settings of `default` whose evaluations and regrets are shown beside each other."""

UNITS = {
    "evaluations": "adapters (and the base) times choosing examples, mean of a task; live: all of two tasks",
    "regret": "best mean less the chosen adapter's mean, on the judging examples, 0 to 1; means over orders",
    "throughput": "evaluations a second",
}

console = Console(stderr=True)


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    flan: Annotated[Path | None, typer.Option(help="Folder with FLAN's data; adds `replay`.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where trainings and the table are kept.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    count: Annotated[int, typer.Option(min=1520, help="Sound adapters of the noisy pool.")] = 1536,
    orders: Annotated[int, typer.Option(min=1, help="Orders of examples and adapters.")] = 30,
) -> None:
    """Measures what strategies cost and lose, in the noisy pool, on FLAN, and through the whole suite."""
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    recipe, cache = NoisyRecipe(count=count, seed=seed), cache or cache_folder()
    with _timed(seconds, "table"):
        table_path = _measured(recipe, cache)
    with _timed(seconds, "strategies"):
        report = _replayed(table_path, orders, seed)
    with _timed(seconds, "live"):
        report["live"] = live(recipe, cache, _say)
    with _timed(seconds, "throughput"):
        report["throughput"] = throughput(seed, progress=_say)
    if flan is not None:
        with _timed(seconds, "replay"):
            _say("replaying on FLAN's scores")
            report["replay"] = replay(flan, cache=cache)
    report |= {"machine": machine(), "versions": versions(), "seed": seed, "units": UNITS}
    report |= {"seconds": round(time.perf_counter() - started, 1), "seconds_by_part": seconds}
    _print(report)
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - started, 1)


@contextmanager
def _bar(description: str, total: int) -> Iterator[tuple[Progress, Any]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress, progress.add_task(description, total=total)


def _measured(recipe: NoisyRecipe, cache: Path) -> Path:
    """Trains and measures the pool unless ``cache`` holds its table; returns where it lies."""
    steps = recipe.trainings * recipe.checkpoints[-1]
    with _bar("training adapters from other seeds", steps) as (progress, bar):
        trained_stacks(recipe, cache, lambda done: progress.update(bar, completed=done))
        progress.update(bar, completed=steps)
    with _bar("measuring every adapter on every example", recipe.count + 1) as (progress, bar):
        found = measure_pool(recipe, cache, lambda done: progress.update(bar, completed=done))
        progress.update(bar, completed=recipe.count + 1)
    return found


def _replayed(path: Path, orders: int, seed: int) -> dict[str, Any]:
    """The figures that come from the table alone."""
    measured = load_pool_table(path)
    with _bar("replaying strategies on the table", orders) as (progress, bar):
        results, shares = replay_all(path, orders, seed, CURVE, lambda: progress.advance(bar))
    easy, hard = (figures(results, pool) for pool in ("easy", "hard"))
    named = (*NAMES, "random")
    return {
        "adapters": measured.base,
        "tasks": len(measured.tasks),
        "orders": orders,
        "strategies": {name: easy[name] for name in named},
        "hard": {name: hard[name] for name in named},
        "default_minus_paper": {pool: paired(results, pool, "default", "paper") for pool in ("easy", "hard")},
        "curve": {name: {"easy": easy[name], "hard": hard[name]} for name in CURVE},
        "incremental": {
            "evaluations_fraction": round(float(np.mean(shares)), 5),
            "worst_fraction": round(max(shares), 5),
            "joined": len(shares),
        },
    }


def _print(report: Mapping[str, Any]) -> None:
    out = Console()
    head = (
        "strategy",
        "evaluations a task",
        "mean regret",
        "worst task's",
        "hard: evaluations",
        "mean",
        "worst",
    )
    table = Table(*head)
    hard = report["hard"] | {name: row["hard"] for name, row in report["curve"].items()}
    easy = report["strategies"] | {name: row["easy"] for name, row in report["curve"].items()}
    for name, row in easy.items():
        columns = [cell for one in (row, hard[name]) for cell in _cells(one)]
        table.add_row(name, *columns)
    out.print(
        f"{report['adapters']:,} adapters, {report['tasks']} tasks, {report['orders']} orders of examples"
    )
    out.print(table)
    for pool, row in report["default_minus_paper"].items():
        out.print(
            f"{pool}: default's regret less paper's {row['difference']:+.4f} ± {row['standard_error']:.4f}"
        )
    found = report["live"]
    out.print(
        f"live, {found['adapters']:,} adapters, two tasks: {found['evaluations']:,} evaluations in "
        f"{found['seconds']:.0f} s; registered in {found['registration_seconds']:.0f} s"
    )
    out.print(
        f"one adapter more costs {report['incremental']['evaluations_fraction']:.2%} of a full match "
        f"(live: {found['incremental']['evaluations_fraction']:.2%})"
    )
    for name, fate in found["broken"].items():
        out.print(f"broken, {name}: {fate}")
    for mode, by_examples in report["throughput"].items():
        for examples, row in by_examples.items():
            rates = ", ".join(f"{who} {rate:,.0f}" for who, rate in row.items() if who != "agreement")
            out.print(f"{mode}, {examples} examples an adapter, evaluations a second: {rates}")
    for name, evaluations in report.get("replay", {}).get("evaluations", {}).items():
        lost = report["replay"]["regret"][name]
        out.print(f"FLAN, {name}: {evaluations:,.0f} evaluations a task, regret {lost:.4f}")
    out.print(f"{report['seconds']:.0f} s: {report['seconds_by_part']}", style="dim")


def _cells(row: Mapping[str, float]) -> tuple[str, str, str]:
    return f"{row['evaluations']:,.0f}", f"{row['mean_regret']:.4f}", f"{row['worst_regret']:.4f}"


def _say(line: str) -> None:
    console.print(line, style="dim")


if __name__ == "__main__":
    typer.run(main)
