"""The paper's experiment on pools made anew: `python -m benchmarks.lab [--json PATH] [--plot PATH]`."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.lab_composing import Composer
from benchmarks.lab_figures import PAIRED, Summary, by_cluster, by_seed, paired, regimes
from benchmarks.lab_measured import lab_examples, measured_pool
from benchmarks.lab_methods import METHODS, STRATEGIES, Answers, answers
from benchmarks.lab_plot import draw
from benchmarks.lab_pools import REGIMES, LabPools
from benchmarks.lab_recipe import LabRecipe
from benchmarks.lab_training import trained_stack
from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.data import TASKS
from lorauter_suite.demo.noisy.__main__ import cache_folder
from lorauter_suite.demo.verify import FROZEN_DIGEST, POOL, verify_pool
from lorauter_suite.machine import machine, versions

PROCESSES = 2
ROUTING_STEPS = 20
"""What routing and answering by one strategy in one regime counts beside a training step, on the bar."""

console = Console(stderr=True)


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this file, SVG or PNG.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where trainings and measurements are kept.")] = None,
) -> None:
    """Trains adapters, draws queries, routes them in three regimes, and answers them, for each pool seed."""
    started = time.perf_counter()
    verify_pool(expected=FROZEN_DIGEST)
    recipe, cache = LabRecipe(), cache or cache_folder().parent / "lab"
    made = _all_seeds(recipe, cache)
    report = _report(recipe, made)
    report["seconds"] = round(time.perf_counter() - started, 1)
    _print(report, Console())
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        draw(report["regimes"], plot)


def _all_seeds(recipe: LabRecipe, cache: Path) -> list[tuple[Answers, Summary]]:
    """Every seed's answers and routes, PROCESSES seeds at a time, each on one core."""
    total = len(recipe.seeds) * _units(recipe)
    context = multiprocessing.get_context("spawn")
    done: Synchronized[int] = context.Value("i", 0)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with context.Pool(PROCESSES, _share, (done,)) as pool, Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"{len(recipe.seeds)} pools: training, measuring, routing", total=total)
        result = pool.starmap_async(_one_seed, [(recipe, seed, cache) for seed in recipe.seeds], chunksize=1)
        while not result.ready():
            result.wait(0.5)
            progress.update(bar, completed=done.value)
        made = result.get()
        progress.update(bar, completed=total)
        pool.close()
        pool.join()
    return made


def _units(recipe: LabRecipe) -> int:
    arms = len(recipe.adapters.specs) + 1
    return recipe.steps + arms + ROUTING_STEPS * len(REGIMES) * len(STRATEGIES)


_steps_done: Synchronized[int]


def _share(done: Synchronized[int]) -> None:
    global _steps_done
    _steps_done = done
    torch.set_num_threads(1)


def _advance(steps: int = 1) -> None:
    with _steps_done.get_lock():
        _steps_done.value += steps


def _one_seed(recipe: LabRecipe, seed: int, cache: Path) -> tuple[Answers, Summary]:
    loaded = load_pool(POOL)
    stack = trained_stack(recipe, seed, loaded, cache, _advance)
    measured = measured_pool(recipe, seed, loaded, stack, cache, _advance)
    validation, queries = (lab_examples(recipe, seed, split) for split in ("validation", "test"))
    names = [spec.id for spec in recipe.adapters.specs]
    pools = LabPools(measured, recipe.homes, names, validation, queries)
    composer = Composer(loaded, stack, measured, queries)
    return answers(measured, recipe.own, pools, composer, lambda: _advance(ROUTING_STEPS))


def _report(recipe: LabRecipe, made: Sequence[tuple[Answers, Summary]]) -> dict[str, Any]:
    seeds, routes = [found for found, _ in made], [told for _, told in made]
    clusters = [task.cluster for task in TASKS]
    return {
        "regimes": regimes(seeds, clusters),
        "paired": paired(seeds, clusters, "default"),
        "paired_single": paired(seeds, clusters, "default_single"),
        "by_seed": by_seed(seeds, clusters),
        "by_cluster": by_cluster(seeds, clusters),
        "routes": _mean_routes(routes),
        "recipe": asdict(recipe),
        "base": FROZEN_DIGEST,
        "machine": machine(),
        "versions": versions(),
        "seed": list(recipe.seeds),
    }


def _mean_routes(told: Sequence[Summary]) -> Summary:
    return {
        regime: {
            name: {
                key: round(float(np.mean([each[regime][name][key] for each in told])), 3) for key in figures
            }
            for name, figures in by_name.items()
        }
        for regime, by_name in told[0].items()
    }


def _print(report: Mapping[str, Any], out: Console) -> None:
    seeds, queries = report["seed"], report["recipe"]["queries"]
    title = (
        f"{len(seeds)} pools, {queries} queries of each of {len(TASKS)} tasks: % of the best single adapter"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    table.add_column("")
    for regime in REGIMES:
        for column in (regime.replace("_", " "), "of own"):
            table.add_column(column, justify="right")
    for method in METHODS:
        cells = []
        for regime in REGIMES:
            row = report["regimes"][regime][method]
            cells += [
                f"{row['percent_of_best_single']:.1f} ± {row['standard_error']:.1f}",
                f"{row['percent_of_own']:.1f}",
            ]
        table.add_row(method, *cells)
    out.print(table)
    _print_paired("default", report["paired"], out)
    _print_paired("default_single", report["paired_single"], out)
    out.print(f"{report['seconds']} s", style="dim")


def _print_paired(ours: str, differences: Summary, out: Console) -> None:
    table = Table(
        title=f"\n{ours} less others, in pairs",
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("")
    for regime in REGIMES:
        table.add_column(regime.replace("_", " "), justify="right")
    for name in PAIRED[ours]:
        rows = [differences[regime][name] for regime in REGIMES]
        table.add_row(name, *(f"{row['difference']:+.2f} ± {row['standard_error']:.2f}" for row in rows))
    out.print(table)


if __name__ == "__main__":
    typer.run(main)
