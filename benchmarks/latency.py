"""How long a route takes: `python -m benchmarks.latency [--flan DIR] [--json PATH]`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table

from benchmarks.latency_texts import Texts, dump, make_texts
from lorauter.encoder import Encoder, load_encoder
from lorauter.encoder.encoder import DEFAULT_ENCODER, SentenceEncoder, encoder_directory
from lorauter.router.v1 import router_pb2 as pb
from lorauter.router.v1.router_pb2_grpc import RouterServiceStub
from lorauter_suite.machine import machine, versions

WORKLOADS = ("short", "flan")
TASKS = (48, 1_000, 10_000)
RATE_TASKS = 1_000
"""Tasks at which throughput is measured."""

CLIENTS = (1, 8, 32)
BLOCK = 10
BLOCKS = {"short": 24, "flan": 16}
"""Queries that one side answers before the other has its turn, and turns of each."""

ROUNDS = 5
ROUND_SECONDS = 2.0
"""Rounds of throughput, in which all numbers of clients take turns."""

WARM_UP = 20
CACHE = 10_000

COLUMNS = ("tasks", "cold p50", "p99", "warm p50", "p99", "encoder alone", "empty call", "the rest")

Report = dict[str, Any]
Times = list[float]

console = Console(stderr=True)


@dataclass(slots=True)
class Sides:
    """Who encodes in this process, on one thread, to compare with."""

    forward: Encoder
    sentence_transformers: Encoder


def main(
    flan: Annotated[Path | None, typer.Option(help="Folder with the FLAN data: real queries.")] = None,
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of texts and task sets.")] = 0,
) -> None:
    """Times Route on loopback against the encoder alone, with 48, 1,000 and 10,000 tasks."""
    started = time.perf_counter()
    sides = Sides(load_encoder(DEFAULT_ENCODER), SentenceEncoder(encoder_directory(DEFAULT_ENCODER), 1))
    texts = make_texts(4_000, seed, flan)
    report: Report = {name: {"tasks": {}} for name in WORKLOADS}
    with tempfile.TemporaryDirectory(prefix="lorauter-latency-") as folder:
        file = Path(folder) / "texts.json"
        file.write_text(dump(texts), encoding="utf-8")
        for tasks in TASKS:
            console.print(f"{tasks} tasks", style="dim")
            _measure(report, sides, texts, file, tasks, seed)
    report |= {"real_lengths": texts.are_real, "machine": machine(), "versions": versions(), "seed": seed}
    report["seconds"] = round(time.perf_counter() - started, 1)
    _print(report, Console())
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _measure(report: Report, sides: Sides, texts: Texts, file: Path, tasks: int, seed: int) -> None:
    with _router(file, tasks, 0, seed) as stub:
        for workload in WORKLOADS:
            queries = getattr(texts, workload)
            cold = _cold(sides, stub, queries, BLOCKS[workload], with_others=tasks == RATE_TASKS)
            report[workload]["tasks"][str(tasks)] = {"cold_ms": _quantiles(cold["route"])}
            beside = {
                f"{name}_ms": _quantiles(times, (50,)) for name, times in cold.items() if name != "route"
            }
            if tasks == RATE_TASKS:
                report[workload] |= beside
            report[workload]["tasks"][str(tasks)]["beside"] = beside
    with _router(file, tasks, CACHE, seed) as stub:
        for workload in WORKLOADS:
            query = getattr(texts, workload)[0]
            warm = [_timed(_route, stub, query) for _ in range(WARM_UP + 300)]
            report[workload]["tasks"][str(tasks)]["warm_ms"] = _quantiles(warm[WARM_UP:])
    if tasks == RATE_TASKS:
        for cache, key, clients in ((0, "rps", CLIENTS), (CACHE, "rps_warm", CLIENTS[-1:])):
            with _router(file, tasks, cache, seed) as stub:
                for workload in WORKLOADS:
                    queries = getattr(texts, workload)
                    report[workload][key] = _rates(stub.target, queries, clients, is_warm=cache > 0)


class Stub:
    """Calls a router from one thread."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = grpc.insecure_channel(target)
        self.service = RouterServiceStub(self._channel)
        self.health = health_pb2_grpc.HealthStub(self._channel)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()


@contextmanager
def _router(file: Path, tasks: int, cache: int, seed: int) -> Iterator[Stub]:
    command = [sys.executable, "-m", "benchmarks.latency_router", str(file), *map(str, (tasks, cache, seed))]
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stub = Stub(f"127.0.0.1:{json.loads(process.stdout.readline())['port']}")
        try:
            yield stub
        finally:
            stub.close()
            process.stdin.close()
            process.wait(30)


def _route(stub: Stub, query: str) -> None:
    stub.service.Route(pb.RouteRequest(query=query), timeout=30)


def _timed(call: Callable[..., object], *given: object) -> float:
    began = time.perf_counter()
    call(*given)
    return 1e3 * (time.perf_counter() - began)


def _cold(
    sides: Sides, stub: Stub, queries: Sequence[str], blocks: int, with_others: bool
) -> dict[str, Times]:
    """Times each side on the same queries, block by block, so that what else the machine does meets all."""
    calls: dict[str, Callable[[str], object]] = {
        "route": lambda query: _route(stub, query),
        "encoder_forward": lambda query: sides.forward.encode([query]),
    }
    if with_others:
        calls["sentence_transformers"] = lambda query: sides.sentence_transformers.encode([query])
    for call in calls.values():
        for query in queries[-WARM_UP:]:
            call(query)
    times: dict[str, Times] = {name: [] for name in (*calls, "empty_call")}
    for block in range(blocks):
        part = queries[block * BLOCK : (block + 1) * BLOCK]
        for name, call in calls.items():
            times[name] += [_timed(call, query) for query in part]
        times["empty_call"] += [_timed_empty_call(sides, stub, query) for query in part]
    return times


def _timed_empty_call(sides: Sides, stub: Stub, query: str) -> float:
    """Times a call without work after as long a pause as between two routes: waking up is part of a call."""
    sides.forward.encode([query])
    return _timed(stub.health.Check, health_pb2.HealthCheckRequest())


def _rates(target: str, queries: Sequence[str], clients: Sequence[int], is_warm: bool) -> dict[str, float]:
    """Returns routes a second by number of clients, each of which waits for its answer: medians of rounds."""
    found: dict[int, Times] = {number: [] for number in clients}
    for _ in range(ROUNDS):
        for number in clients:
            found[number].append(asyncio.run(_rate(target, queries[:500] if is_warm else queries, number)))
    return {str(number): round(float(np.median(rates)), 1) for number, rates in found.items()}


async def _rate(target: str, queries: Sequence[str], clients: int) -> float:
    async with grpc.aio.insecure_channel(target) as channel:
        service = RouterServiceStub(channel)
        numbers = count()
        done = 0

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await service.Route(pb.RouteRequest(query=queries[next(numbers) % len(queries)]), timeout=30)
                done += 1

        end = time.perf_counter() + 0.3
        await asyncio.gather(*(client() for _ in range(clients)))
        done = 0
        began = time.perf_counter()
        end = began + ROUND_SECONDS
        await asyncio.gather(*(client() for _ in range(clients)))
        return done / (time.perf_counter() - began)


def _quantiles(times: Times, levels: Sequence[int] = (50, 99)) -> dict[str, float]:
    return {f"p{level}": round(float(np.percentile(times, level)), 3) for level in levels}


def _print(report: Report, out: Console) -> None:
    for workload in WORKLOADS:
        found = report[workload]
        kind = (
            "" if workload == "short" else ", real texts" if report["real_lengths"] else ", synthetic texts"
        )
        table = Table(title=f"{workload}{kind}: milliseconds", title_justify="left", box=None)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for tasks, row in found["tasks"].items():
            forward, empty = (
                row["beside"][f"{name}_ms"]["p50"] for name in ("encoder_forward", "empty_call")
            )
            cold, warm = row["cold_ms"], row["warm_ms"]
            rest = cold["p50"] - forward - empty
            figures = (cold["p50"], cold["p99"], warm["p50"], warm["p99"], forward, empty, rest)
            table.add_row(tasks, *(f"{figure:.2f}" for figure in figures))
        out.print(table)
        one = found["tasks"][str(RATE_TASKS)]
        cold, theirs = one["cold_ms"]["p50"], found["sentence_transformers_ms"]["p50"]
        out.print(
            f"at {RATE_TASKS} tasks a cold route takes {cold / found['encoder_forward_ms']['p50']:.2f} x the "
            f"encoder alone and {cold / theirs:.2f} x sentence-transformers' encode ({theirs:.2f} ms)"
        )
        rates = ", ".join(f"{rate:.0f}/s with {clients}" for clients, rate in found["rps"].items())
        out.print(f"routes, clients that wait: {rates}; cached {found['rps_warm']['32']:.0f}/s with 32\n")
    out.print(f"{report['seconds']} s", style="dim")


if __name__ == "__main__":
    typer.run(main)
