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

from benchmarks.live import live
from benchmarks.matching_report import print_report
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
    f"kept {kept}, confidence {confidence:g}": DefaultStrategy(kept=kept, confidence=confidence)
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
    print_report(report, Console())
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


def _say(line: str) -> None:
    console.print(line, style="dim")


if __name__ == "__main__":
    typer.run(main)
