"""Breaks a real suite and counts what it loses: `python -m benchmarks.faults [--json PATH] [--long]`.

Every figure but `recovery_s` is to be 0, and that of the control, which works without an outbox, is not.
"""

# ruff: noqa: E402  -- numpy reads its number of threads when it is imported
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.faults_figures import Report, failures, figures, table
from benchmarks.faults_kills import KillRun, run_control, run_kills
from benchmarks.faults_swaps import run_swaps
from benchmarks.faults_trials import Trials, run_trials, shares
from lorauter.encoder import DEFAULT_ENCODER, Encoder, load_encoder
from lorauter_suite.machine import machine, versions

STATE = Path(".benchmarks/faults")
"""Where results of parts are kept, by seed: a run that is interrupted goes on with the next part."""
FINISHED = "finished"
"""A file beside the parts of a run that came to its end: the next one begins anew."""

Say = Callable[[str], None]

console = Console(stderr=True)


@dataclass(frozen=True)
class Size:
    """How much of everything a run does in one round, and how many rounds there are."""

    rounds: int
    changes: int
    kills: int
    trials: int
    swaps: int
    routes: int
    control_changes: int = 400
    control_kills: int = 2


DEFAULT = Size(rounds=1, changes=10_000, kills=30, trials=200, swaps=5, routes=20_000)
LONG = Size(rounds=10, changes=10_000, kills=20, trials=100, swaps=2, routes=20_000)


class State:
    """Results of parts, each in a file of its own; what is there is not done again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, part: str) -> Report | None:
        """Returns what a part gave, or None if it is still to do."""
        path = self._folder / f"{part}.json"
        found: Report | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return found

    def put(self, part: str, result: Report) -> None:
        """Keeps what a part gave, whole or not at all."""
        path = self._folder / f"{part}.json"
        path.with_suffix(".new").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        path.with_suffix(".new").replace(path)


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    long: Annotated[bool, typer.Option("--long", help="The full figures; goes on where it stopped.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of changes, kills and moments.")] = 0,
    scale: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Share of the size, for a quick look.")
    ] = 1.0,
) -> None:
    """Kills processes under load, crashes them at named points, and swaps encoders under routes."""
    began = time.monotonic()
    size = scaled(LONG if long else DEFAULT, scale)
    folder = STATE / f"{'long' if long else 'default'}-{scale:g}-{seed}"
    if (folder / FINISHED).exists():
        shutil.rmtree(folder)
    state = State(folder)
    console.print(f"seed {seed}; the parts' results are in {folder}", style="dim")
    parts = _measured(state, size, seed)
    report = figures(parts) | {"machine": machine(), "versions": versions(), "seed": seed}
    report["seconds"] = round(time.monotonic() - began, 1)
    (folder / FINISHED).touch()
    Console().print(table(report))
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    wrong = failures(report)
    for words in [*wrong, *report["words"]]:
        console.print(words, style="red", markup=False)
    raise typer.Exit(1 if wrong else 0)


def scaled(size: Size, scale: float) -> Size:
    """Returns a share of a size, with at least one of everything."""
    counts = {name: max(1, round(count * scale)) for name, count in asdict(size).items() if name != "rounds"}
    return Size(rounds=size.rounds, **counts)


def _measured(state: State, size: Size, seed: int) -> list[Report]:
    """Does all parts that are not done yet; returns the results of all."""
    encoder = load_encoder(DEFAULT_ENCODER)
    results: list[Report] = []
    for number in range(size.rounds):
        round_seed = seed * 1_000 + number
        results.append(
            _once(state, f"kills-{number}", lambda at, s=round_seed: _kills(at, encoder, s, size))  # type: ignore[misc]
        )
        results += _trial_parts(state, number, encoder, round_seed, size)
        results.append(
            _once(state, f"swaps-{number}", lambda at, s=round_seed: _swaps(at, encoder, s, size))  # type: ignore[misc]
        )
    results.append(_once(state, "control", lambda at: _control(at, encoder, seed, size)))
    return results


def _once(state: State, part: str, work: Callable[[Path], Report]) -> Report:
    if (known := state.get(part)) is not None:
        return known
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorauter-faults-") as folder:
        result = work(Path(folder)) | {"seconds": round(time.monotonic() - began, 1)}
    state.put(part, result)
    return result


def _kills(folder: Path, encoder: Encoder, seed: int, size: Size) -> Report:
    run = run_kills(folder / "suite", encoder, seed, size.changes, size.kills, _say)
    return {"kind": "kills", **_told(run)}


def _control(folder: Path, encoder: Encoder, seed: int, size: Size) -> Report:
    run = run_control(folder / "suite", encoder, seed, size.control_changes, size.control_kills)
    _say(f"without the outbox: {run.verdict.lost} of {run.changes} changes lost")
    return {"kind": "control", **_told(run)}


def _told(run: KillRun) -> Report:
    return asdict(run) | {"kills": len(run.kills), "victims": run.kills}


def _swaps(folder: Path, encoder: Encoder, seed: int, size: Size) -> Report:
    return {"kind": "swaps", **asdict(run_swaps(folder, encoder, seed, size.swaps, size.routes, _say))}


def _trial_parts(state: State, number: int, encoder: Encoder, seed: int, size: Size) -> list[Report]:
    """Returns the results of one round's trials, a part for each point."""
    wanted = {point: count for point, count in shares(size.trials).items() if count}
    parts = {point: f"trials-{number}-{point}" for point in wanted}
    left = {point: count for point, count in wanted.items() if state.get(parts[point]) is None}
    began = time.monotonic()

    def done(result: Trials) -> None:
        seconds = round(time.monotonic() - began, 1)
        state.put(parts[result.point], {"kind": "trials", **asdict(result), "seconds": seconds})

    if left:
        with tempfile.TemporaryDirectory(prefix="lorauter-faults-") as folder:
            run_trials(Path(folder), encoder, seed, left, _say, done)
    results = [state.get(part) for part in parts.values()]
    return [result for result in results if result is not None]


def _say(words: str) -> None:
    console.print(words, style="dim", markup=False)


if __name__ == "__main__":
    typer.run(main)
