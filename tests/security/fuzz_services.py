"""Fuzzes the services of a suite: `python -m tests.security.fuzz_services --count N --seed S`.

Whatever callers send, they get an answer or a typed error in time: no INTERNAL, UNKNOWN or HTTP 500, no
hang, and no memory that grows with what is refused. Each call is made from seed and number alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import httpx

from lorauter.registry.v1.registry_pb2 import BACKEND_KIND_ENGINE
from lorauter_suite.machine import machine, versions
from lorauter_suite.suite import Addresses, Suite, SuiteOptions
from tests.security.fuzz_grpc import HANG_SECONDS, Said, call, draws, reflected
from tests.security.fuzz_http import engine_call, from_document

TENANT = "fuzz"
"""Whose key the calls have: what they make and delete is nobody else's."""
SERVICES = ("registry", "router", "gateway", "engine")
START_SECONDS = 400.0
"""A machine that others use may take so long to start all."""

TOGETHER = 8
"""Calls at a time."""
WARM = 0.1
"""After this share of its calls a process should have all that it needs; growth is counted from there."""
SAMPLED = 200
"""How many calls pass between two looks at a process's memory."""
KEPT = 20
"""Most defects that are described."""


@dataclass
class Figures:
    """What came out of the calls of a service.

    ``server_errors``: HTTP 500 and like ones, not 503 and 504; ``first`` says what the first defects were.
    ``grown_mib`` is how much resident memory grew after the first tenth.
    """

    service: str
    calls: int = 0
    internal: int = 0
    server_errors: int = 0
    hangs: int = 0
    grown_mib: float = 0.0
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)

    @property
    def defects(self) -> int:
        """How much is wrong in all."""
        return self.internal + self.server_errors + self.hangs

    def note(self, said: Said) -> None:
        """Counts a call."""
        self.calls += 1
        self.statuses[said.status] = self.statuses.get(said.status, 0) + 1
        is_server_error = said.status in ("500", "501", "505", "broken off")
        self.hangs += said.hung
        self.internal += said.is_defect and not said.hung
        self.server_errors += is_server_error
        if (said.is_defect or is_server_error) and len(self.first) < KEPT:
            self.first.append(f"{said.what}: {'hung' if said.hung else said.status} {said.words[:300]}")


class Memory:
    """Looks at a process's resident memory now and then."""

    def __init__(self, pid: int | None, total: int) -> None:
        self._path = Path(f"/proc/{pid}/status") if pid else None
        self._warm_at = int(total * WARM)
        self._warm = 0.0
        self.grown_mib = 0.0

    def look(self, calls: int) -> None:
        """Looks, every so many calls."""
        if self._path is None or calls % SAMPLED:
            return
        line = next(each for each in self._path.read_text().splitlines() if each.startswith("VmRSS"))
        mib = int(line.split()[1]) / 1024
        if calls <= self._warm_at or not self._warm:
            self._warm = max(self._warm, mib)
        self.grown_mib = max(self.grown_mib, mib - self._warm)


async def fuzz(
    addresses: Addresses,
    key: str,
    count: int,
    seed: int,
    pids: Mapping[str, int],
    services: Sequence[str] = SERVICES,
) -> list[Figures]:
    """Makes ``count`` calls to each service, half of them over HTTP where it has both."""
    found = []
    for name in services:
        figures, memory = Figures(name), Memory(pids.get(name), count)
        began = time.monotonic()

        def told(said: Said, figures: Figures = figures, memory: Memory = memory) -> None:
            figures.note(said)
            memory.look(figures.calls)

        http = getattr(addresses, f"{name}_http")
        if name == "engine":
            await _over_engine(http, count, seed, told)
        else:
            both = name != "router"
            share = count // 2 if both else count
            await _over_grpc(getattr(addresses, f"{name}_grpc"), key, share, f"{seed}/{name}", told)
            if both:
                headers = {"authorization": f"Bearer {key}"}
                await asyncio.to_thread(from_document, http, headers, count - share, seed, told)
        figures.grown_mib, figures.seconds = round(memory.grown_mib, 1), round(time.monotonic() - began, 1)
        found.append(figures)
    return found


async def _over_grpc(address: str, key: str, count: int, seed: str, told: Callable[[Said], None]) -> None:
    methods = await asyncio.to_thread(reflected, address)
    async with grpc.aio.insecure_channel(address) as channel:

        async def one(draw: Random) -> None:
            told(await call(channel, draw.choice(methods), draw, key))

        await _together(seed, count, one)


async def _over_engine(url: str, count: int, seed: int, told: Callable[[Said], None]) -> None:
    key = os.environ.get("LORAUTER_BACKEND_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=HANG_SECONDS, trust_env=False
    ) as http:

        async def one(draw: Random) -> None:
            told(await engine_call(http, draw))

        await _together(f"{seed}/engine", count, one)


async def _together(seed: str, count: int, one: Callable[[Random], Awaitable[None]]) -> None:
    left = draws(seed, count)

    async def work(left: Iterator[Random]) -> None:
        for draw in left:
            await one(draw)

    await asyncio.gather(*(work(left) for _ in range(TOGETHER)))


def prepare(addresses: Addresses) -> str:
    """Makes a tenant of its own, whose pool has a task and the engine; returns its key."""
    with addresses.client() as admin:
        key: str = admin.registry.create_api_key(scopes=["admin"], tenant=TENANT).secret
    with addresses.client(api_key=key) as client:
        client.registry.create_pool(id="p", base_model="lorauter/demo-base")
        client.registry.register_backend(
            id="e", pool="p", kind=BACKEND_KIND_ENGINE, url=addresses.engine_http
        )
        client.registry.create_task(id="t", pool="p", metric="exact_match")
        client.registry.put_validation_set(
            "t", [("Repeat the word sun", "sun"), ("Repeat the word moon", "moon")]
        )
    return key


def table(figures: Sequence[Figures]) -> str:
    """Returns the figures for people."""
    rows = ["service      calls  INTERNAL/UNKNOWN  HTTP 500  hangs  grown MiB  seconds"]
    rows += [
        f"{each.service:<9}{each.calls:>9,}{each.internal:>18}{each.server_errors:>10}{each.hangs:>7}"
        f"{each.grown_mib:>11}{each.seconds:>9}"
        for each in figures
    ]
    return "\n".join([*rows, *(f"  {words}" for each in figures for words in each.first)])


@contextmanager
def suite(folder: Path) -> Iterator[tuple[Addresses, dict[str, int]]]:
    """Runs a suite whose registry reaches no hub."""
    options = SuiteOptions(
        environment={"LORAUTER_HUB_ENDPOINT": "http://127.0.0.1:9"}, start_seconds=START_SECONDS
    )
    with Suite(folder, options) as running:
        yield running.addresses, running.pids()


def main() -> int:
    """Runs the command line; returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="calls to each service")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--service", action="append", choices=SERVICES, help="only these")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="lorauter-fuzz-") as folder,
        suite(Path(folder)) as (addresses, pids),
    ):
        key = prepare(addresses)
        found = asyncio.run(
            fuzz(addresses, key, options.count, options.seed, pids, options.service or SERVICES)
        )
    print(table(found))
    if options.json:
        report: dict[str, Any] = {"services": [asdict(each) for each in found], "seed": options.seed}
        options.json.write_text(json.dumps(report | {"machine": machine(), "versions": versions()}, indent=2))
    return 1 if any(each.defects for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
