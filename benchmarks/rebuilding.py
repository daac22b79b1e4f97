"""How long an index takes to come back from PostgreSQL: `python -m benchmarks.rebuilding [--json PATH]`.

A suite on embedded parts with synthetic tasks, or FLAN's texts; the index's data is wiped by SIGKILL, for it
keeps them in memory.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.latency_texts import make_texts
from lorauter import Client
from lorauter.errors import LorauterError
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.router.v1.router_pb2 import RouteResponse
from lorauter_suite.machine import machine, versions
from lorauter_suite.seeding import POOL_DIRECTORY, POOL_ID, seed_adapter
from lorauter_suite.suite import Suite, SuiteOptions

SERVICES = ("registry", "worker-index", "router")
EXAMPLES = 20
MEASURED = 10
"""Adapters with a score on each task, besides the base."""

QUERIES = 200
CALLS = 8
POLL_SECONDS = 0.1
LONGEST_SECONDS = 570.0

Report = dict[str, Any]

console = Console(stderr=True)


class Decided(NamedTuple):
    """What a decision names, and its figures in the same order."""

    names: tuple[object, ...]
    figures: tuple[float, ...]


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    tasks: Annotated[int, typer.Option(min=2, help="Tasks of 20 examples.")] = 1_000,
    flan: Annotated[Path | None, typer.Option(help="Folder with the FLAN data: real texts.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of texts and scores.")] = 0,
) -> None:
    """Registers tasks, wipes the index, and lets `lorauter index rebuild` bring it back."""
    report = measured(tasks, seed, flan)
    _print(report)
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if report["encoded"] or not report["decisions_equal"]:
        raise typer.Exit(1)


def measured(tasks: int, seed: int, flan: Path | None) -> Report:
    """Returns the figures.

    ``seconds`` is what the command takes; ``cold_seconds`` from a SIGKILL of index, worker and router at
    once, without a command, until the next router serves all, their starts included. ``encoded`` counts
    texts over both. ``first_seconds`` is how long it took to be published first, encoding included.
    """
    started = time.perf_counter()
    random = np.random.default_rng(seed)
    sets, queries = task_texts(tasks, seed, flan)
    with (
        tempfile.TemporaryDirectory(prefix="lorauter-rebuilding-") as folder,
        Suite(Path(folder), SuiteOptions(services=SERVICES)) as suite,
        suite.addresses.client() as client,
    ):
        console.print(f"registering {tasks:,} tasks of {EXAMPLES} examples", style="dim")
        began = time.perf_counter()
        register(client, sets, random)
        await_routed(client)
        first = time.perf_counter() - began
        before, encoded = decisions(client, queries), _encoded(suite)
        console.print("wiping the index, then `lorauter index rebuild`", style="dim")
        kill(suite, "index")
        seconds = _timed(lambda: _command(suite))
        kill(suite, "router")  # the next one knows only what is in the index
        await_routed(client)
        equal = are_alike(decisions(client, queries), before)
        encoded = _encoded(suite) - encoded
        console.print("wiping the index, and killing whoever remembers what was in it", style="dim")
        began = time.perf_counter()
        kill(suite, "index", "worker-index", "router")
        await_routed(client)
        cold = time.perf_counter() - began
        equal = equal and are_alike(decisions(client, queries), before)
        encoded += _encoded(suite)
    return {
        "tasks": tasks,
        "examples": EXAMPLES,
        "seconds": round(seconds, 2),
        "cold_seconds": round(cold, 2),
        "first_seconds": round(first, 1),
        "encoded": encoded,
        "decisions_equal": equal,
        "queries": len(queries),
        "real_texts": flan is not None,
        "load": [round(one, 1) for one in os.getloadavg()],
        "machine": machine(),
        "versions": versions(),
        "seed": seed,
        "total_seconds": round(time.perf_counter() - started, 1),
    }


def task_texts(tasks: int, seed: int, flan: Path | None) -> tuple[list[Sequence[str]], list[str]]:
    """Returns twenty texts for each task, which begin alike, and queries like those of some tasks."""
    texts = make_texts(tasks * EXAMPLES + QUERIES, seed, flan)
    known = texts.flan if texts.are_real else texts.short
    topics = [f"{known[number]} {known[-1 - number]}" for number in range(tasks)]
    sets: list[Sequence[str]] = [
        [f"{topic}: {text}" for text in known[number * EXAMPLES : (number + 1) * EXAMPLES]]
        for number, topic in enumerate(topics)
    ]
    return sets, [f"{topics[number % tasks]}: {text}" for number, text in enumerate(known[-QUERIES:])]


def register(client: Client, sets: Sequence[Sequence[str]], random: np.random.Generator) -> None:
    """Registers the demo's base and adapters, a task for each set of texts, and scores of ten adapters."""
    described = json.loads((POOL_DIRECTORY / "pool.json").read_text(encoding="utf-8"))
    base = described["base"]["id"]
    client.registry.create_pool(id=POOL_ID, base_model=base, base_path=str(POOL_DIRECTORY / "base"))
    folders = sorted((POOL_DIRECTORY / "adapters").iterdir())
    with ThreadPoolExecutor(CALLS) as threads:
        list(threads.map(partial(seed_adapter, client), folders))
        list(threads.map(partial(_put_task, client), range(len(sets)), sets))
    arms = [folder.name for folder in folders]
    client.registry.import_affinities(
        affinities=[score for number in range(len(sets)) for score in _scores(number, arms, random)]
    )


def decisions(client: Client, queries: Sequence[str]) -> list[Decided]:
    """Returns what is decided for queries, with the evidence, as far as it is not of one moment."""
    return [_decided(client.route(query, pool=POOL_ID)) for query in queries]


def are_alike(found: Sequence[Decided], wanted: Sequence[Decided]) -> bool:
    """Whether decisions name the same in the same order, with figures within 1e-5.

    The last bits of a vector depend on which texts the encoder read together.
    """
    return [each.names for each in found] == [each.names for each in wanted] and all(
        np.allclose(one.figures, other.figures, rtol=0, atol=1e-5)
        for one, other in zip(found, wanted, strict=True)
    )


def await_routed(client: Client, seconds: float = LONGEST_SECONDS) -> None:
    """Returns when the index is at the registry's generation, and the router serves it from there.

    Raises TimeoutError.
    """
    deadline = time.monotonic() + seconds
    while not _is_routed(client):
        if time.monotonic() > deadline:
            raise TimeoutError(f"routers did not follow within {seconds:g} s")
        time.sleep(POLL_SECONDS)


def _is_routed(client: Client) -> bool:
    try:
        generation = client.registry.get_generation().generation
        answer = client.route("is it there?", pool=POOL_ID, min_generation=generation)
    except LorauterError:
        return False
    return not answer.stale


def _decided(answer: RouteResponse) -> Decided:
    return Decided(
        (
            *((one.adapter_id, one.version) for one in answer.adapters),
            *(one.task_id for one in answer.tasks),
            answer.best_single.adapter_id,
            answer.profile_digest,
        ),
        (
            *(one.weight for one in answer.adapters),
            *(figure for one in answer.tasks for figure in (one.similarity, one.probability)),
            answer.best_single.expected_utility,
            answer.typicality,
        ),
    )


def _put_task(client: Client, number: int, texts: Sequence[str]) -> None:
    task = _task_id(number)
    client.registry.create_task(id=task, pool=POOL_ID, metric="exact_match")
    examples = [pb.ValidationExample(input=text, target="yes") for text in texts]
    client.registry.put_validation_set(task, examples)


def _task_id(number: int) -> str:
    return f"task-{number:05}"


def _scores(number: int, arms: Sequence[str], random: np.random.Generator) -> Iterator[pb.Affinity]:
    chosen = ["base", *random.choice(arms, MEASURED, replace=False).tolist()]
    for arm, score in zip(chosen, random.random(len(chosen)).tolist(), strict=True):
        yield pb.Affinity(task_id=_task_id(number), adapter_id=arm, score=score, count=EXAMPLES)


def kill(suite: Suite, *names: str) -> None:
    """Kills processes of a suite, and returns when others in their place are ready."""
    before = suite.pids()
    for name in names:
        os.kill(before[name], signal.SIGKILL)
    while any(suite.pids().get(name, before[name]) == before[name] for name in names):
        time.sleep(POLL_SECONDS)
    suite.await_ready()


def _command(suite: Suite) -> None:
    command = [sys.executable, "-c", "from lorauter_suite.cli import main; main()", "index", "rebuild"]
    subprocess.run(  # noqa: S603
        command,
        env={**os.environ, "LORAUTER_DATA": str(suite.data_dir)},
        check=True,
        stderr=subprocess.DEVNULL,
    )


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _encoded(suite: Suite) -> int:
    """Returns how many texts the worker has encoded since it started."""
    port = json.loads((suite.data_dir / "ports.json").read_text(encoding="utf-8"))["worker-index"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = re.search(r"^lorauter_encoded_texts_total (\S+)$", answer.read().decode(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def _print(report: Report) -> None:
    table = Table(title="the index, from PostgreSQL", title_justify="left", box=None)
    for column in (
        "tasks",
        "examples",
        "first time, s",
        "by command, s",
        "worker anew too, s",
        "encoded",
        "equal",
    ):
        table.add_column(column, justify="right")
    table.add_row(
        f"{report['tasks']:,}",
        f"{report['tasks'] * report['examples']:,}",
        *(f"{report[name]:.1f}" for name in ("first_seconds", "seconds", "cold_seconds")),
        str(report["encoded"]),
        "yes" if report["decisions_equal"] else "NO",
    )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
