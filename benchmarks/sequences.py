"""Lets hypothesis look for a harmful order of events: `python -m benchmarks.sequences --count N --seed S`.

Sequences come in slices, each of a seed of its own, which several processes play, each on a database of its
own; a run that is interrupted goes on with the slices that are left.
"""

# ruff: noqa: E402  -- numpy reads its number of threads when it is imported
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import hypothesis
import structlog
import typer
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.sequences_machine import Machine
from benchmarks.sequences_site import Site
from lorauter.store import create_engine
from lorauter.store.migrate import migrate
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.postgres import EmbeddedPostgres
from lorauter_suite.embedded.process import running
from lorauter_suite.machine import machine, versions

STATE = Path(".benchmarks/sequences")
"""Where the results of slices are kept, by seed."""

SLICE = 100
STEPS = 12
"""Most rules of a sequence; the end, at which everything comes to rest, is not counted."""

_UNSAFE_BUT_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

Result = dict[str, Any]


def main(
    count: Annotated[int, typer.Option(min=1, help="How many sequences in all.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the slices' seeds.")] = 0,
    only: Annotated[int | None, typer.Option("--slice", min=0, help="Only this one, anew.")] = None,
    shrink: Annotated[bool, typer.Option("--shrink", help="Look for the shortest order that fails.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="How many play slices at a time.")] = 2,
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Runs sequences and prints one line: how many, their steps, seeds, violations and seconds."""
    numbers = [only] if only is not None else list(range(-(-count // SLICE)))
    folder = STATE / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers if only is not None else []:
        _kept(folder, number).unlink(missing_ok=True)
    sizes = {number: SLICE if only is not None else min(SLICE, count - number * SLICE) for number in numbers}
    left = [number for number in numbers if not _kept(folder, number).exists()]
    shares = [left[start::processes] for start in range(min(processes, len(left)))]
    fork = multiprocessing.get_context("spawn")
    players = [fork.Process(target=play, args=(share, sizes, seed, shrink)) for share in shares]
    for player in players:
        player.start()
    for player in players:
        player.join()
    if any(player.exitcode for player in players):
        raise typer.Exit(1)
    results = [json.loads(_kept(folder, number).read_text(encoding="utf-8")) for number in numbers]
    report = figures(results) | {"seed": seed, "machine": machine(), "versions": versions()}
    print(line(report), flush=True)
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(1 if report["violations"] else 0)


def play(numbers: Sequence[int], sizes: dict[int, int], seed: int, shrink: bool) -> None:
    """Plays slices in turn and keeps their results."""
    with tempfile.TemporaryDirectory(prefix="lorauter-sequences-") as scratch, _site(Path(scratch)) as site:
        for number in numbers:
            result = run(site, seed * 1_000 + number, sizes[number], shrink)
            _kept(STATE / str(seed), number).write_text(json.dumps(result) + "\n", encoding="utf-8")
            print(f"slice {number}: {line(figures([result]))}", file=sys.stderr, flush=True)
            if result["violation"]:
                print(f"{result['violation']}\nreplay: make sequences SEED={seed} SLICE={number}", flush=True)


def _kept(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"


def run(site: Site, seed: int, count: int, shrink: bool = False, steps: int = STEPS) -> Result:
    """Runs ``count`` sequences of one seed; ``violation`` is empty, or says what went wrong and how."""
    began = time.monotonic()

    class Seeded(Machine):
        """A machine of a seed of its own."""

    Seeded.site = site
    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])]
    wanted = hypothesis.settings(
        max_examples=count,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    violation = ""
    try:
        run_state_machine_as_test(hypothesis.seed(seed)(Seeded), settings=wanted)
    except Exception as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        violation = f"{type(error).__name__}: {error}\n{notes}"
    return {
        "seed": seed,
        "sequences": Seeded.sequences,
        "steps": Seeded.steps,
        "violation": violation,
        "seconds": round(time.monotonic() - began, 1),
    }


def figures(results: list[Result]) -> Result:
    """Adds up slices."""
    summed = {name: sum(each[name] for each in results) for name in ("sequences", "steps", "seconds")}
    return summed | {
        "seeds": [each["seed"] for each in results],
        "violations": sum(bool(each["violation"]) for each in results),
    }


def line(report: Result) -> str:
    """Returns the figures for people."""
    seeds = report["seeds"]
    return (
        f"{report['sequences']:,} sequences of {report['steps']:,} steps, seeds {seeds[0]} to {seeds[-1]}: "
        f"{report['violations']} violations in {report['seconds']:,.0f} s"
    )


@contextmanager
def _site(folder: Path) -> Iterator[Site]:
    """Lends a site on a PostgreSQL of its own, quietly: what goes wrong on purpose would fill the screen."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    server = EmbeddedPostgres(folder / "postgres", free_port(), _UNSAFE_BUT_FAST)
    with running(server.process()):
        migrate(server.url())
        engine = create_engine(server.url(), pool_size=8)
        try:
            yield Site(engine, folder)
        finally:
            engine.dispose()


if __name__ == "__main__":
    typer.run(main)
