"""Crash trials: a process kills itself at a named point on a change's way, and the change arrives once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults_changes import Caller
from benchmarks.faults_kills import REPAIRED, Site, site
from lorauter.encoder import Encoder
from lorauter.failpoints import POINTS, VARIABLE

TOGETHER = 3
"""Points that are tried at the same time, each on a suite of its own."""

PASSES = 2
"""The pass at which a process dies: the first one of the next process then completes the work."""

TRIES = 20
"""Changes after which a process must have come to its point."""

SETTINGS = {
    "LORAUTER_LEASE_SECONDS": "1.5",
    "LORAUTER_HEARTBEAT_SECONDS": "0.5",
    "LORAUTER_SWEEP_SECONDS": "0.3",
    "LORAUTER_RECONCILE_SECONDS": "5",
}
"""A shorter lease, so that the many trials fit; what is tried does not depend on how long it is."""

IN_REGISTRY = ("commit", "committed", "wake-up")


@dataclass(frozen=True)
class Trials:
    """The crash trials at one point, and what went wrong in them, in numbers and in words."""

    point: str
    trials: int
    violations: int
    words: tuple[str, ...]


def run_trials(
    folder: Path,
    encoder: Encoder,
    seed: int,
    counts: Mapping[str, int],
    say: Callable[[str], None],
    done: Callable[[Trials], None],
) -> None:
    """Crashes so many times at each point; ``done`` gets each point's result when it is there."""

    def one(point: str) -> None:
        result = _trials(folder / point, encoder, seed, point, counts[point])
        say(f"{result.trials} crashes at {point}: {result.violations} violations")
        done(result)

    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(one, counts))


def shares(total: int) -> dict[str, int]:
    """Returns how many of ``total`` trials each point gets."""
    return {
        point: total // len(POINTS) + (number < total % len(POINTS)) for number, point in enumerate(POINTS)
    }


def _trials(folder: Path, encoder: Encoder, seed: int, point: str, count: int) -> Trials:
    process = "registry" if point in IN_REGISTRY else "worker-index"
    environment = {**SETTINGS, VARIABLE: f"{point}:{PASSES}"}
    violations = 0
    words: list[str] = []
    with site(folder, encoder, ("registry", "worker-index"), **environment) as here:
        caller = Caller(point, here.client, here.files, here.ledger, seed)
        for number in range(count):
            _until_crash(here, caller, process, f"{VARIABLE} {point}\n", number)
            verdict = here.judge.judge(here.ledger, seconds=60)
            violations += verdict.violations
            words += verdict.words
        repaired = here.logged("worker-index", REPAIRED)
    return Trials(point, count, violations + repaired, tuple(words[:20]))


def _until_crash(here: Site, caller: Caller, process: str, line: str, before: int) -> None:
    """Makes changes, each of which has to be published, until a process crashed once more."""
    for _ in range(TRIES):
        caller.replace_set()
        here.judge.settle(60)
        if here.logged(process, line) > before:
            return
    raise RuntimeError(f"no crash at {line!r} within {TRIES} changes: {here.suite.data_dir}")
