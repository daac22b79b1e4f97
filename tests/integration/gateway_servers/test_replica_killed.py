"""One of three replicas is killed under load, and comes back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lorauter.routing.model import Adapter, Backend, Manifest, ManifestEntry
from tests.budgets import LONG
from tests.integration.gateway_servers.conftest import TASKS, Shelf
from tests.integration.gateway_servers.load import Outcome, ask, expected, sustained, until
from tests.integration.gateway_servers.stand import Background, Gateway, TaskTexts, World, gateway, routing
from tests.protocol_servers.process import Running
from tests.protocol_servers.tgi import READING as TGI_READING
from tests.protocol_servers.vllm_adapters import READING as VLLM_READING
from tests.protocol_servers.weights import BASE, modules_of, read_weights

AT_A_TIME = 24
REQUESTS = 1_000
"""So many before and after the kill together, at least: of 1,000 requests one may fail."""
ANSWER_TOKENS = 8
FAULTS = 5
"""Consecutive failures that eject a replica."""


@contextmanager
def standing(
    kind: str,
    shelf: Shelf,
    serve: Callable[..., Running],
    background: Background,
    tasks: TaskTexts,
    log: Path,
    redis_url: str,
) -> Iterator[tuple[Gateway, list[Running]]]:
    """Runs a gateway in front of three servers of a kind, each a backend."""
    names = {f"adapter-{task}": shelf.make(f"adapter-{task}") for task in TASKS[:3]}
    store = str(shelf.store.root)
    options: dict[str, Any] = {"journal": log.parent / "journal", "answer_tokens": ANSWER_TOKENS}
    options |= {"token_seconds": 0.004}
    if kind == "tgi":
        options |= {"lora_adapters": ",".join(f"{name}={store}/{name}" for name in names.values())}
    else:
        options |= {"max_loras": 4, "max_cpu_loras": 8}
    with ExitStack() as stack:
        servers = [serve(kind, **options) for _ in range(3)]
        entries = tuple(ManifestEntry(name, ((f"sha256:{name}", 1.0),), 8) for name in names.values())
        world = World(
            [Adapter(adapter, 1, f"sha256:{name}", True, rank=8) for adapter, name in names.items()],
            {task: [f"adapter-{task}"] for task in TASKS[:3]},
            [
                Backend(f"replica-{number}", kind, server.url, False, adapter_slots=4, adapters_path=store)
                for number, server in enumerate(servers)
            ],
            [Manifest("sha256:" + "1" * 64, entries)] if kind == "tgi" else [],
        )
        router = stack.enter_context(routing(background, tasks, world))
        yield (
            stack.enter_context(gateway(router.address, log, redis_url=redis_url)),
            servers,
        )


@pytest.mark.parametrize("kind", ["vllm", "tgi"] if LONG else ["vllm"])
async def test_replica_killed_under_load_costs_no_request_that_had_not_begun(
    kind: str,
    shelf: Shelf,
    serve: Callable[..., Running],
    background: Background,
    tasks: TaskTexts,
    tmp_path: Path,
    redis_url: str,
) -> None:
    targets = ["base", *(f"adapter-{task}" for task in TASKS[:3])]

    async def one(http: aiohttp.ClientSession, number: int) -> Outcome:
        adapter = targets[number % len(targets)]
        body = {"inputs": prompt(number), "parameters": {"max_new_tokens": 64, "adapter_id": adapter}}
        return await ask(http, front.url, Outcome(number, number % 8 < 4), body)

    with standing(kind, shelf, serve, background, tasks, tmp_path / "log", redis_url) as (front, servers):
        async with sustained(AT_A_TIME, one) as outcomes:
            await until(lambda: len(outcomes) >= REQUESTS // 3)
            servers[1].kill()
            await until(lambda: front.replica("replica-1")["state"] == "ejected")
            failures = front.metric("lorauter_gateway_backend_failures_total", backend="replica-1")
            seen = len(outcomes)
            await until(lambda: len(outcomes) >= seen + REQUESTS // 3)
            servers[1].start()
            await until(lambda: front.replica("replica-1")["state"] == "healthy", seconds=60)
            seen = len(outcomes)
            await until(lambda: len(outcomes) >= max(REQUESTS, seen + REQUESTS // 3))
        begun_again = servers[1].counters()["begun"]
    assert failures <= AT_A_TIME + FAULTS, "what was under way there broke, and five more may"
    assert begun_again > 0, "it is given requests again"
    _check_outcomes(outcomes)
    _check_generated_once(tmp_path / "journal", outcomes)
    modules = modules_of(str(shelf.base))
    reading = TGI_READING if kind == "tgi" else VLLM_READING
    weights = {
        "base": BASE,
        **{name: read_weights(shelf.path(name), reading, modules) for name in targets[1:]},
    }
    for outcome in outcomes:
        adapter = targets[outcome.number % len(targets)]
        if outcome.is_whole:
            assert outcome.headers["x-lorauter-adapters"] == f"{adapter};w=1.0"
            text = await expected(prompt(outcome.number), weights[adapter], 64, ANSWER_TOKENS)
            assert outcome.text == text


def prompt(number: int) -> str:
    return f"Please answer #{number}# now."


def _check_outcomes(outcomes: list[Outcome]) -> None:
    lost = [outcome for outcome in outcomes if not outcome.has_begun]
    assert len(lost) <= len(outcomes) // 1_000, lost
    broken = [outcome for outcome in outcomes if outcome.has_begun and not outcome.is_whole]
    assert len(broken) <= AT_A_TIME
    assert all(outcome.streams and outcome.error for outcome in broken), "a broken stream says so"


def _check_generated_once(journal: Path, outcomes: list[Outcome]) -> None:
    """No server begins a request that another has answered with a token before."""
    lives = defaultdict(list)
    for line in journal.read_text().splitlines():
        event, number, _ = line.split()
        lives[int(number)].append(event)
    asked = {outcome.number for outcome in outcomes}
    assert asked <= lives.keys()
    twice = {
        number: events
        for number, events in lives.items()
        if "first" in events and "begun" in events[events.index("first") :]
    }
    assert not twice
