"""What grows with tasks, adapters and requests: `python -m benchmarks.scale [--json PATH] [--plot PICTURE]`.

Unit costs are measured at several sizes on this machine, so that the growth is seen; what 10,000 tasks,
100,000 adapters and 10,000 requests a second need is computed from them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.scale_core import of_adapters, of_matching, of_tasks
from benchmarks.scale_database import of_registries
from benchmarks.scale_gateway import of_requests
from benchmarks.scale_model import Target, UnitCosts, needed, slope
from benchmarks.scale_plot import draw
from lorauter_suite.machine import machine, versions

TASKS = (100, 1_000, 10_000)
ADAPTERS = (1_000, 10_000, 100_000)
ADAPTER_TASKS = 100
"""Tasks of the pools in which adapters are counted."""

MATCHED = (100, 1_000, 10_000)
REGISTRIES = [(100, 100), (300, 300), (1_000, 1_000)]
POOLS = (1, 10, 100)
"""Over which the target's tasks and adapters are spread."""

TARGET = Target(tasks=10_000, adapters=100_000, pools=1, requests_per_second=10_000.0)

Sized = Mapping[str, Mapping[str, float]]
Report = dict[str, Any]

console = Console(stderr=True)


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the growth into this picture.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is synthetic.")] = 0,
) -> None:
    """Measures unit costs at several sizes, and computes what a large deployment needs."""
    report = measured(seed)
    show(report, Console())
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        draw(report, plot)


def measured(seed: int) -> Report:
    """Returns all figures, of one run."""
    started = time.perf_counter()
    report: Report = {}
    steps: dict[str, Callable[[], Sized]] = {
        "requests": lambda: of_requests(seed),
        "database": lambda: of_registries(REGISTRIES),
        "tasks": lambda: {str(size): of_tasks(size, seed) for size in TASKS},
        "adapters": lambda: {str(size): of_adapters(size, ADAPTER_TASKS, seed) for size in ADAPTERS},
        "matching": lambda: {str(size): of_matching(size, seed) for size in MATCHED},
    }
    for name, measure in steps.items():
        console.print(name, style="dim")
        report[name] = measure()
    unit = unit_costs(report)
    report["unit"] = dataclasses.asdict(unit)
    report["targets"] = {
        str(pools): needed(dataclasses.replace(TARGET, pools=pools), unit) for pools in POOLS
    }
    report |= {"target": dataclasses.asdict(TARGET), "load": [round(one, 1) for one in os.getloadavg()]}
    report |= {"machine": machine(), "versions": versions(), "seed": seed}
    return {**report, "seconds": round(time.perf_counter() - started, 1)}


def unit_costs(report: Report) -> UnitCosts:
    """Returns what one more of each costs, from a report's measurements."""
    tasks, adapters, requests = report["tasks"], report["adapters"], report["requests"]
    rates = [name for name in requests if name not in ("new", "rss_mb")]
    busiest = requests[max(rates, key=float)]
    database = _by_pairs(report["database"])
    largest = database[max(database)]
    return UnitCosts(
        gateway_request_seconds=busiest["gateway"] / 1e3,
        router_known_seconds=busiest["router"] / 1e3,
        router_new_seconds=requests["new"]["router"] / 1e3,
        router_task_bytes=slope(_column(tasks, "router_bytes")),
        router_adapter_bytes=slope(_column(adapters, "router_bytes")),
        router_fixed_bytes=1e6 * requests["rss_mb"]["router"],
        root_task_bytes=slope(_column(tasks, "root_bytes")),
        root_adapter_bytes=slope(_column(adapters, "root_bytes")),
        database_task_bytes=sum(
            largest[f"{table}_bytes"] for table in ("task", "validation_example", "cached_embedding")
        )
        / largest["task_rows"],
        database_pair_bytes=sum(largest[f"{table}_bytes"] for table in ("affinity", "measurement"))
        / largest["measurement_rows"],
        evaluations_per_pair=report["matching"][str(MATCHED[-1])]["evaluations_per_adapter"],
        refit_task_seconds=slope(_column(tasks, "refit_one_more_seconds")),
        state_pair_seconds=slope({pairs: row["state_seconds"] for pairs, row in database.items()}),
        encode_adapter_seconds=slope(_column(adapters, "encode_seconds")),
    )


def _column(sized: Sized, name: str) -> dict[float, float]:
    return {float(size): row[name] for size, row in sized.items()}


def _by_pairs(database: Sized) -> dict[float, Mapping[str, float]]:
    return {row["measurement_rows"]: row for row in database.values()}


def show(report: Report, out: Console) -> None:
    """Prints the tables."""
    shown = ("root_bytes", "router_bytes", "encode_seconds", "compile_seconds", "decision_ms")
    for what in ("tasks", "adapters"):
        columns = (*(("refit_one_more_seconds",) if what == "tasks" else ()), *shown)
        table = Table(title=f"with {what}, measured", title_justify="left", box=None)
        for column in (what, *(name.replace("_", " ") for name in columns)):
            table.add_column(column, justify="right")
        for size, row in report[what].items():
            table.add_row(f"{int(size):,}", *(_number(row[name]) for name in columns))
        out.print(table)
    table = Table(
        title="10,000 tasks, 100,000 adapters, 10,000 requests a second, computed",
        title_justify="left",
        box=None,
    )
    for column in ("", *(f"{pools} pool{'s' if pools > 1 else ''}" for pools in POOLS)):
        table.add_column(column, justify="right")
    for name in next(iter(report["targets"].values())):
        table.add_row(name.replace("_", " "), *(_number(row[name]) for row in report["targets"].values()))
    out.print(table)
    out.print(f"{report['seconds']} s, load {report['load'][0]}", style="dim")


def _number(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g} {unit}"
    return f"{value:.3g}"


if __name__ == "__main__":
    typer.run(main)
