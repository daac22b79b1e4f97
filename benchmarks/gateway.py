"""What the gateway costs: `python -m benchmarks.gateway [--json PATH]`."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.gateway_load import (
    DRAIN_SECONDS,
    Planned,
    Sample,
    Target,
    differences,
    evenly,
    play,
    post,
    quantiles,
)
from benchmarks.gateway_processes import Stack, gateway_among, peers
from benchmarks.gateway_router import ADAPTER
from benchmarks.latency_texts import make_texts
from lorauter_suite.machine import machine, versions

RATE = 100.0
TOKENS = 8
TOKEN_SECONDS = 0.02
"""Tokens of an answer, and the pause between those of a stream where first tokens are timed."""

SETTINGS = {"LORAUTER_MAX_CONCURRENT_REQUESTS": "1024", "LORAUTER_BACKEND_CONCURRENCY": "1024"}
"""More than by default, for 500 streams run at a time."""

CONNECTIONS = 64
BOUND_SECONDS = 0.1
"""A rate is sustained if all are answered and the 99th percentile from when they were due is below this."""

CONFIRMATIONS = 4
"""Longer trials, each a little slower, of what the search found; if none is sustained, the rate is 0."""

SLOTS, SLOT_SECONDS, OFFERED = 8, 0.1, 800.0
"""The overloaded stub, and the requests a second that it is offered."""

LIGHT = 0.1
"""Share of its capacity that is light load."""

Report = dict[str, Any]
Samples = dict[str, list[Sample]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long to measure: seconds, but for ``rounds`` of the ways, ``streams`` and ``steps`` of the search.

    ``queries`` are those of the routed requests, all routed once before.
    """

    queries: int = 200
    rounds: int = 10
    block: float = 1.0
    trial: float = 4.0
    confirmation: float = 10.0
    streams: int = 500
    streaming: float = 60.0
    light: float = 15.0
    overload: float = 10.0
    first_rate: float = 200.0
    steps: int = 8


console = Console(stderr=True)


def main(
    path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of texts and tasks.")] = 0,
) -> None:
    """Times the gateway before a stub that generates nothing: all that is measured is the way there.

    Callers send keys, and so does the gateway to the router; one arm is of a key with limits.
    """
    report = measure(Sizes(), seed)
    show(report, Console())
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(sizes: Sizes, seed: int) -> Report:
    """Returns all figures, of one run."""
    started = time.perf_counter()
    gc.disable()
    try:
        report = uvloop.run(_measured(sizes, seed))
    finally:
        gc.enable()
    report |= {"settings": SETTINGS, "machine": machine(), "versions": versions(), "seed": seed}
    return {**report, "seconds": round(time.perf_counter() - started, 1)}


async def _measured(sizes: Sizes, seed: int) -> Report:
    texts = make_texts(sizes.queries + round(RATE * sizes.rounds * sizes.block), seed, None).short
    known, new = texts[: sizes.queries], texts[sizes.queries :]
    with peers(seed) as others:
        with gateway_among(others, SETTINGS) as stack:
            console.print("warming up", style="dim")
            await _warmed(stack, known)
            console.print("overhead", style="dim")
            report = await _overhead(stack, sizes, known, new)
            console.print("highest rate", style="dim")
            report |= await _highest_rate(stack, sizes, known)
            console.print("streams", style="dim")
            report |= await _streams(stack, sizes, known)
            await _set(stack, slots=SLOTS, seconds=SLOT_SECONDS)
        with gateway_among(others, {}) as stack:
            console.print("overload", style="dim")
            report["overload"] = await _overload(stack, sizes, known)
    return report


def chat(query: str, model: str = "auto", *, is_streamed: bool = False, tokens: int = TOKENS) -> bytes:
    """Returns a chat completion's request."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": query}],
        "max_tokens": tokens,
    }
    return post("/v1/chat/completions", {**body, "stream": True} if is_streamed else body)


async def _warmed(stack: Stack, queries: Sequence[str]) -> None:
    """Routes every query once, slower than they can be encoded; opens the connections."""
    for target in (stack.to_stub, stack.to_gateway, stack.to_gateway_limited, stack.to_proxy):
        await target.warm(CONNECTIONS)
    routed = [chat(query) for query in queries]
    plan = [
        Planned(at, "", target, request)
        for target, requests in (
            (stack.to_gateway, [*routed, *(chat(query, ADAPTER) for query in queries[:20])]),
            (stack.to_gateway_limited, routed[:20]),
            (stack.to_stub, routed[:20]),
            (stack.to_proxy, routed[:20]),
        )
        for at, request in zip(evenly(RATE / 2, 2 * len(requests) / RATE), requests, strict=True)
    ]
    _all_answered(await play(plan))


async def _overhead(stack: Stack, sizes: Sizes, known: Sequence[str], new: Sequence[str]) -> Report:
    """Times the ways to the stub in turns, each request beside the same one sent straight."""
    await _set(stack, token_seconds=TOKEN_SECONDS)
    arms: dict[str, tuple[Target, Iterable[bytes], float]] = {
        "routed": (stack.to_gateway, cycle([chat(query) for query in known]), 2 * sizes.block),
        "limited_key": (stack.to_gateway_limited, cycle([chat(query) for query in known]), sizes.block),
        "pinned": (stack.to_gateway, cycle([chat(query, ADAPTER) for query in known]), sizes.block),
        "uncached": (stack.to_gateway, iter([chat(query) for query in new]), sizes.block),
        "plain_proxy": (stack.to_proxy, cycle([chat(query) for query in known]), sizes.block),
        "streamed": (
            stack.to_gateway,
            cycle([chat(query, is_streamed=True) for query in known]),
            sizes.block,
        ),
    }
    plan: list[Planned] = []
    begin = 0.0
    for _ in range(sizes.rounds):
        for name, (target, requests, seconds) in arms.items():
            times = evenly(RATE, seconds, begin)
            for at, request in zip(times, islice(requests, len(times)), strict=True):
                plan.append(Planned(at, name, target, request))
                plan.append(Planned(at + 0.5 / RATE, f"{name} straight", stack.to_stub, request))
            begin += seconds + (TOKENS * TOKEN_SECONDS if name == "streamed" else 0.0)
    found = await play(plan)
    _all_answered(found)
    return _overhead_figures(found)


def _overhead_figures(found: Samples) -> Report:
    def more(name: str, of: Callable[[Sample], float]) -> dict[str, float]:
        return quantiles(differences([*map(of, found[name])], [*map(of, found[f"{name} straight"])]))

    wholes = ("routed", "limited_key", "pinned", "uncached", "plain_proxy")
    overhead = {name: more(name, lambda sample: sample.latency) for name in wholes}
    late = [max(0.0, sample.sent - sample.due) for samples in found.values() for sample in samples]
    return {
        "overhead_ms": overhead.pop("routed"),
        "overhead_beside_ms": overhead,
        "first_token_overhead_ms": more("streamed", lambda sample: sample.first - sample.sent),
        "latency_ms": {
            name: quantiles([sample.latency for sample in found[name]])
            for name in ("routed straight", *wholes)
        },
        "sent_late_ms": quantiles(late),
    }


async def _highest_rate(stack: Stack, sizes: Sizes, known: Sequence[str]) -> Report:
    """Searches for the highest rate that is sustained: up by a quarter until one is not, then between."""
    good, bad = 0.0, 0.0
    rate = sizes.first_rate
    for _ in range(sizes.steps):
        is_sustained, _ = await _trial(stack, known, rate, sizes.trial)
        good, bad = (rate, bad) if is_sustained else (good, rate)
        if bad and bad < 1.06 * good:
            break
        rate = 1.25 * good if not bad else (good + bad) / 2 if good else bad / 2
    figures: Report = {}
    for _ in range(CONFIRMATIONS):
        is_sustained, figures = await _trial(stack, known, good or rate, sizes.confirmation)
        if is_sustained:
            return {"rps": round(good or rate, 1), "at_rps": figures}
        good = 0.92 * (good or rate)
    return {"rps": 0.0, "at_rps": figures}


async def _trial(stack: Stack, known: Sequence[str], rate: float, seconds: float) -> tuple[bool, Report]:
    """Returns whether a rate is sustained, with latencies and processor time of each process a request."""
    requests = cycle([chat(query) for query in known])
    times = evenly(rate, seconds)
    before = {name: process.cpu_seconds() for name, process in stack.processes().items()}
    own = time.process_time()
    found = await play(
        Planned(at, "", stack.to_gateway, request) for at, request in zip(times, requests, strict=False)
    )
    samples = found[""]
    used = {name: process.cpu_seconds() - before[name] for name, process in stack.processes().items()}
    used["load"] = time.process_time() - own
    errors = sum(sample.status != 200 for sample in samples)
    waited = quantiles([sample.waited for sample in samples])
    is_sustained = errors == 0 and waited["p99"] <= 1e3 * BOUND_SECONDS
    figures = {
        "waited_ms": waited,
        "cpu_ms": {name: round(1e3 * spent / len(samples), 3) for name, spent in used.items()},
    }
    console.print(f"  {rate:.0f}/s: {errors} errors, {figures}", style="dim")
    return is_sustained, figures


async def _streams(stack: Stack, sizes: Sizes, known: Sequence[str]) -> Report:
    """Runs streams of two tokens a second side by side, and watches the gateway's memory."""
    await _set(stack, token_seconds=0.5)
    tokens = round(2 * sizes.streaming)
    requests = [chat(query, is_streamed=True, tokens=tokens) for query in islice(cycle(known), sizes.streams)]
    plan = [
        Planned(number * 2 / sizes.streams, "", stack.to_gateway, request)
        for number, request in enumerate(requests)
    ]
    before = stack.gateway.rss_mb()
    most = before
    cpu = stack.gateway.cpu_seconds()
    playing = asyncio.ensure_future(play(plan, sizes.streaming + DRAIN_SECONDS))
    while not playing.done():
        await asyncio.wait([playing], timeout=0.5)
        most = max(most, stack.gateway.rss_mb())
    samples = (await playing)[""]
    delays = [delay for sample in samples for delay in sample.delays]
    return {
        "streams": sum(sample.status == 200 and len(sample.delays) == tokens for sample in samples),
        "rss_growth_mb": round(most - before, 1),
        "streamed": {
            "events": len(delays),
            "delay_ms": quantiles(delays),
            "cpu_ms": round(1e3 * (stack.gateway.cpu_seconds() - cpu) / max(1, len(delays)), 3),
            "rss_mb": round(most, 1),
        },
    }


async def _overload(stack: Stack, sizes: Sizes, known: Sequence[str]) -> Report:
    """Offers ten times what the stub can do, after light load for comparison."""
    await _warmed_lightly(stack, known)
    light = await _offered(stack, known, LIGHT * SLOTS / SLOT_SECONDS, sizes.light)
    _all_answered({"": light})
    samples = await _offered(stack, known, OFFERED, sizes.overload)
    refused = [sample.waited for sample in samples if sample.status == 429]
    accepted = [sample.waited for sample in samples if sample.status == 200]
    light_p99, accepted_p99 = (
        quantiles(seconds)["p99"] for seconds in ([sample.waited for sample in light], accepted)
    )
    return {
        "refusal_p99_ms": quantiles(refused)["p99"],
        "accepted_p99_ratio": round(accepted_p99 / light_p99, 3),
        "accepted_p99_ms": accepted_p99,
        "light_p99_ms": light_p99,
        "accepted_per_s": round(len(accepted) / sizes.overload, 1),
        "refused_per_s": round(len(refused) / sizes.overload, 1),
        "failed": len(samples) - len(refused) - len(accepted),
    }


async def _warmed_lightly(stack: Stack, known: Sequence[str]) -> None:
    await stack.to_gateway.warm(CONNECTIONS)
    await _offered(stack, known, 0.5 * SLOTS / SLOT_SECONDS, len(known) * SLOT_SECONDS / SLOTS * 2)


async def _offered(stack: Stack, known: Sequence[str], rate: float, seconds: float) -> list[Sample]:
    requests = cycle([chat(query) for query in known])
    plan = [
        Planned(at, "", stack.to_gateway, request)
        for at, request in zip(evenly(rate, seconds), requests, strict=False)
    ]
    return (await play(plan))[""]


async def _set(stack: Stack, **settings: float) -> None:
    """Sets how the stub answers."""
    request = post("/stub", settings)
    _all_answered(await play([Planned(0.0, "", stack.to_stub, request)]))


def _all_answered(found: Samples) -> None:
    for name, samples in found.items():
        wrong = [sample.status for sample in samples if sample.status != 200]
        if wrong:
            raise RuntimeError(f"{name or 'warm-up'}: {len(wrong)} of {len(samples)} failed, {set(wrong)}")


def show(report: Report, out: Console) -> None:
    """Prints the figures for people."""
    table = Table(title="milliseconds more than straight to the stub, 100/s", title_justify="left", box=None)
    for column in ("", "p50", "p99"):
        table.add_column(column, justify="right" if column else "left")
    rows = {
        "routed, query known": report["overhead_ms"],
        "routed, first token": report["first_token_overhead_ms"],
        **{name.replace("_", " "): found for name, found in report["overhead_beside_ms"].items()},
    }
    for name, found in rows.items():
        table.add_row(name, f"{found['p50']:.2f}", f"{found['p99']:.2f}")
    out.print(table)
    overload, streamed = report["overload"], report["streamed"]
    cpu = ", ".join(f"{name} {spent:.2f}" for name, spent in report["at_rps"].get("cpu_ms", {}).items())
    out.print(f"{report['rps']:.0f} routed requests/s sustained; processor ms of each: {cpu}")
    out.print(
        f"{report['streams']} streams of 2 events/s: {report['rss_growth_mb']:.1f} MB more, events "
        f"{streamed['delay_ms']['p50']:.1f} ms late (p99 {streamed['delay_ms']['p99']:.1f})"
    )
    out.print(
        f"{OFFERED:.0f}/s offered to {SLOTS} slots of {SLOT_SECONDS} s: refused within "
        f"{overload['refusal_p99_ms']:.1f} ms (p99), accepted {overload['accepted_per_s']:.0f}/s in "
        f"{overload['accepted_p99_ratio']:.2f} x the time of light load (p99)"
    )
    out.print(f"{report['seconds']} s", style="dim")


if __name__ == "__main__":
    typer.run(main)
