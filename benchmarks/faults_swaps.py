"""Another encoder takes over, again and again, while a router answers: no answer may be of two."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults_changes import POOL, WORDS, Caller
from benchmarks.faults_kills import Site, routed_generation, site
from lorauter import Client
from lorauter.encoder import DEFAULT_ENCODER, Encoder, encoder_directory, load_encoder
from lorauter.errors import LorauterError
from lorauter.identifiers import decode_generation
from lorauter.index import QdrantIndex
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing import compile_pool, decide
from lorauter.routing.model import Snapshot
from lorauter.routing.strategies.strategy import Query
from lorauter_suite.embedded.ports import LOOPBACK, free_port
from lorauter_suite.embedded.probes import http_ready
from lorauter_suite.embedded.process import ProcessSpec, running

CALLERS = 8
QUERIES = [f"{a} {b}: which question is it" for a in WORDS[:8] for b in WORDS[8:]]
PAUSE_SECONDS = 0.02
"""Between two routes of a caller, so that the worker which embeds everything anew has some of the cores."""
ROUTER = {"LORAUTER_DECISION_CACHE": "0"}
"""Every route is decided anew; vectors of queries are cached as by default."""

CHANGES = 80
"""Changes before the first swap; they leave some 15 tasks."""

AT_ONCE = {"LORAUTER_FORMER_ENCODER_SECONDS": "0", "LORAUTER_RECONCILE_SECONDS": "2"}
"""What another encoder embedded is dropped as soon as nobody needs it: the next swap makes it anew."""

SWAP_SECONDS = 120.0
TOLERANCE = 1e-4
"""Of similarities: answers carry float32."""

Told = tuple[int, str]
"""The generation and the encoder that an answer says it is of."""


@dataclass(frozen=True)
class SwapRun:
    """Swaps under routes. ``errors`` were refused, ``mixed`` are not what their snapshot decides."""

    swaps: int
    routes: int
    errors: int
    mixed: int
    stale: int
    words: tuple[str, ...]


@dataclass
class Routes:
    """Callers that route all the time, each the next query after its answer."""

    client: Client
    answers: list[tuple[str, pb.RouteResponse]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seen: set[Told] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        """Starts all callers."""
        self._threads = [
            threading.Thread(target=self._run, args=[number], daemon=True) for number in range(CALLERS)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Lets all callers finish their call."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Waits for something that answers bring; raises RuntimeError if it does not come."""
        deadline = time.monotonic() + SWAP_SECONDS + len(QUERIES)
        while not reached():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not come; the last errors were {self.errors[-3:]}")
            time.sleep(0.02)

    def _run(self, number: int) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            query = QUERIES[number % len(QUERIES)]
            try:
                answer = self.client.route(query, pool=POOL)
            except LorauterError as error:
                self.errors.append(f"{error.reason}: {error.message}")
            else:
                self.answers.append((query, answer))
                self.seen.add(told(answer))
            number += 1


def told(answer: pb.RouteResponse) -> Told:
    """Returns what an answer says it is of."""
    return decode_generation(answer.generation, answer.tenant), answer.encoder_digest


def run_swaps(
    folder: Path, encoder: Encoder, seed: int, swaps: int, routes: int, say: Callable[[str], None]
) -> SwapRun:
    """Lets encoders take turns while at least ``routes`` routes are answered; checks every answer."""
    files = _other_encoder(folder / "encoder")
    names = (DEFAULT_ENCODER, str(files))
    encoders = (encoder, load_encoder(str(files)))
    settings = {"LORAUTER_NEXT_ENCODER": str(files), **ROUTER}
    with site(folder / "suite", encoder, ("router", "registry"), **settings) as here:
        caller = Caller("swaps", here.client, here.files, here.ledger, seed)
        calls, snapshots = Routes(here.client), []
        for number in range(swaps + 1):
            caller.replace_set()  # accepted while no worker runs: the next one embeds it with all the rest
            newest = max(generation for _, generation in here.ledger.acknowledged)
            with worker(here, names[number % 2], **AT_ONCE):
                if not number:
                    newest = _fill(here, caller)
                    while routed_generation(here) < newest:
                        time.sleep(0.1)
                    calls.begin()
                wanted = (newest, encoders[number % 2].digest)
                calls.until(lambda wanted=wanted: wanted in calls.seen, f"{wanted}")  # type: ignore[misc]
                snapshots.append(QdrantIndex(here.suite.addresses.index_http).read("default"))
                share = routes * (number + 1) // (swaps + 1)
                calls.until(lambda share=share: len(calls.answers) >= share, f"{share}")  # type: ignore[misc]
            if number:
                say(f"swap {number} of {swaps}: {len(calls.answers):,} routes, {len(calls.errors)} errors")
        calls.end()
    mixed = mixed_answers(calls.answers, snapshots, {each.digest: each for each in encoders})
    stale = sum(answer.stale for _, answer in calls.answers)
    published = ", ".join(f"{each.generation} by {each.encoder_digest[:12]}" for each in snapshots)
    words = (*calls.errors[:10], *mixed[:10], *([f"published: {published}"] if mixed else []))
    return SwapRun(swaps, len(calls.answers), len(calls.errors), len(mixed), stale, words)


def mixed_answers(
    answers: list[tuple[str, pb.RouteResponse]], snapshots: list[Snapshot], encoders: Mapping[str, Encoder]
) -> list[str]:
    """Returns in words the answers that are not what their generation and their encoder decide together."""
    decisions: dict[tuple[int, str, str], Any] = {}
    for snapshot in snapshots:
        pool = compile_pool(snapshot.pools[POOL])
        vectors = encoders[snapshot.encoder_digest].encode(QUERIES)
        for query, vector in zip(QUERIES, vectors, strict=True):
            key = (snapshot.generation, snapshot.encoder_digest, query)
            decisions[key] = (pool.profile.digest, decide(pool, Query(vector, query)))
    wrong = []
    for query, answer in answers:
        found = decisions.get((*told(answer), query))
        if found is None:
            wrong.append(f"{told(answer)} was never published whole")
        elif not _is_as_decided(answer, *found):
            wrong.append(f"{told(answer)} decides otherwise on {query!r}")
    return wrong


def _is_as_decided(answer: pb.RouteResponse, profile: str, wanted: Any) -> bool:
    return (
        answer.profile_digest == profile
        and answer.best_single.adapter_id == wanted.best_single.adapter_id
        and [match.task_id for match in answer.tasks] == [match.task_id for match in wanted.tasks]
        and np.allclose(
            [match.similarity for match in answer.tasks],
            [match.similarity for match in wanted.tasks],
            atol=TOLERANCE,
        )
    )


def _fill(here: Site, caller: Caller) -> int:
    """Makes the tasks and adapters that are routed to; returns their generation, once it is published."""
    for _ in range(CHANGES):
        caller.change()
    if not here.judge.settle(SWAP_SECONDS):
        raise RuntimeError("the first generation was not published")
    return max(generation for _, generation in here.ledger.acknowledged)


def _other_encoder(folder: Path) -> Path:
    """Writes an encoder of the shipped weights that gives the first token's vector, not the mean."""
    shutil.copytree(encoder_directory(DEFAULT_ENCODER), folder)
    pooling = folder / "1_Pooling" / "config.json"
    described = json.loads(pooling.read_text(encoding="utf-8"))
    described |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    pooling.write_text(json.dumps(described), encoding="utf-8")
    return folder


def worker(here: Site, encoder: str, **settings: str) -> AbstractContextManager[Any]:
    """Runs a worker of its own beside a suite, that embeds with this encoder."""
    port, found = free_port(), here.suite.addresses
    environment = {
        "DATABASE_URL": found.database_url,
        "REDIS_URL": found.redis_url,
        "QDRANT_URL": found.index_http,
        "LORAUTER_HOST": LOOPBACK,
        "LORAUTER_HTTP_PORT": str(port),
        "LORAUTER_QUEUES": "index",
        "LORAUTER_ENCODER": encoder,
        "LORAUTER_DRAIN_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    command = [sys.executable, "-P", "-m", "lorauter_worker.main"]
    probe: Callable[[], bool] = lambda: http_ready(port, "/readyz")  # noqa: E731
    return running(ProcessSpec("worker", command, environment=environment, probe=probe))
