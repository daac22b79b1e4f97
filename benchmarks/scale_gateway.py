"""Processor time of a routed request in gateway and router, at several rates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import uvloop

from benchmarks.gateway import CONNECTIONS, SETTINGS, chat
from benchmarks.gateway_load import Planned, evenly, play
from benchmarks.gateway_processes import Stack, gateway_among, peers
from benchmarks.latency_texts import make_texts

RATES = (50.0, 200.0, 400.0)
SECONDS = 6.0
QUERIES = 200
NEW_RATE = 20.0
"""New queries a second, each of which the router encodes."""

Figures = dict[str, float]


def of_requests(seed: int) -> dict[str, Figures]:
    """Returns milliseconds of processor time a request by process, by requests a second.

    The router knows the queries, but for those under ``new``, and the stub that answers generates nothing.
    Under ``rss_mb`` is what the processes hold, with a snapshot of few tasks.
    """
    return uvloop.run(_measured(seed))


async def _measured(seed: int) -> dict[str, Figures]:
    texts = make_texts(QUERIES + round(NEW_RATE * SECONDS), seed, None).short
    known, new = texts[:QUERIES], texts[QUERIES:]
    with peers(seed) as others, gateway_among(others, SETTINGS) as stack:
        await stack.to_gateway.warm(CONNECTIONS)
        await _spent(stack, known, NEW_RATE * 2, QUERIES / NEW_RATE / 2)
        found = {f"{rate:g}": await _spent(stack, known, rate, SECONDS) for rate in RATES}
        held = {name: process.rss_mb() for name, process in stack.processes().items()}
        return {**found, "new": await _spent(stack, new, NEW_RATE, SECONDS), "rss_mb": held}


async def _spent(stack: Stack, queries: Sequence[str], rate: float, seconds: float) -> Figures:
    before = {name: process.cpu_seconds() for name, process in stack.processes().items()}
    requests = cycle([chat(query) for query in queries])
    times = evenly(rate, seconds)
    samples = (
        await play(
            Planned(at, "", stack.to_gateway, request) for at, request in zip(times, requests, strict=False)
        )
    )[""]
    assert all(sample.status == 200 for sample in samples), "a request was not answered"
    return {
        name: round(1e3 * (process.cpu_seconds() - before[name]) / len(samples), 3)
        for name, process in stack.processes().items()
    }
