"""What more tenants cost a router: `python -m benchmarks.tenants [--json PATH]`."""

# ruff: noqa: E402  -- numpy reads its number of threads when it is imported
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import gc
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.latency_texts import make_snapshot, make_texts
from lorauter.index import QdrantIndex
from lorauter.routing.model import Snapshot
from lorauter.telemetry import configure_logging
from lorauter_router.tasks import SnapshotFollower
from lorauter_suite.embedded.index import index_process, index_url
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running
from lorauter_suite.machine import machine, versions

TENANTS = (1, 10, 50)
TASKS = 100
"""Tasks of a tenant's only pool, ten adapters measured on each."""

POLLS = 100
ENCODER = "sha256:" + "e" * 64

Report = dict[str, Any]
console = Console(stderr=True)


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the tasks.")] = 0,
) -> None:
    """Follows synthetic tenants on an index process as a router does, without any query."""
    started = time.perf_counter()
    base = make_snapshot(TASKS, make_texts(400, seed, None).short, ENCODER, seed)
    report: Report = {"tenants": {str(count): measured(base, count) for count in TENANTS}}
    report |= {"tasks": TASKS, "machine": machine(), "versions": versions(), "seed": seed}
    report["seconds"] = round(time.perf_counter() - started, 1)
    _print(report)
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measured(base: Snapshot, count: int) -> Report:
    """Returns the figures for so many tenants.

    ``memory_mb`` is what the process grows by. ``poll_ms`` is a look at an index that has nothing new, median
    and 99th percentile, ``poll_cpu_ms`` the router's own part of it. ``first_seconds`` is reading and
    compiling all, ``change_seconds`` one tenant's next generation, in which one task is new.
    """
    port = free_port()
    with running(index_process(port)):
        publisher, index = QdrantIndex(index_url(port), 60.0), QdrantIndex(index_url(port))
        for number in range(count):
            publisher.publish(replace(base, tenant=f"tenant-{number}"), [])
        follower = SnapshotFollower(index, (), (ENCODER,), 0.25, 60.0)
        before = _held_mb()
        first = _timed(follower)
        assert len(follower.current().served) == count, follower.lacking()
        memory = _held_mb() - before
        cpu = time.process_time()
        polls = [1_000 * _timed(follower) for _ in range(POLLS)]
        cpu = time.process_time() - cpu
        publisher.publish(_changed(replace(base, tenant="tenant-0", generation=base.generation + 1)), [])
        change = _timed(follower)
        assert follower.current().of("tenant-0").snapshot.generation == base.generation + 1
    return {
        "memory_mb": round(memory, 1),
        "poll_ms": {
            "p50": round(statistics.median(polls), 2),
            "p99": round(statistics.quantiles(polls, n=100)[98], 2),
        },
        "poll_cpu_ms": round(1_000 * cpu / POLLS, 2),
        "first_seconds": round(first, 2),
        "change_seconds": round(change, 3),
    }


def _changed(snapshot: Snapshot) -> Snapshot:
    pool = next(iter(snapshot.pools.values()))
    tasks = (replace(pool.tasks[0], version=2), *pool.tasks[1:])
    return replace(snapshot, pools={pool.pool_id: replace(pool, tasks=tasks)})


def _timed(follower: SnapshotFollower) -> float:
    began = time.perf_counter()
    follower.poll()
    return time.perf_counter() - began


def _held_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _print(report: Report) -> None:
    table = Table(title=f"{report['tasks']} tasks a tenant", title_justify="left", box=None)
    for column in ("tenants", "memory MB", "poll ms", "p99", "of it CPU", "first read s", "one change s"):
        table.add_column(column, justify="right")
    for count, row in report["tenants"].items():
        poll = row["poll_ms"]
        cells = (row["memory_mb"], poll["p50"], poll["p99"], row["poll_cpu_ms"], row["first_seconds"])
        table.add_row(count, *map(str, cells), str(row["change_seconds"]))
    console.print(table)
    console.print(f"{report['seconds']} s", style="dim")


if __name__ == "__main__":
    configure_logging("bench", "ERROR", "text")
    typer.run(main)
