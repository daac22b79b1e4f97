"""Three gateways and three vLLM replicas share slots by their books."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from lorauter.compositions_wanted import WRITTEN, Member, Wanted, Written, dump_fate, key_of
from lorauter.errors import NotFound
from lorauter.lora.composites import Composite
from lorauter.lora.servers import vllm as vllm_server
from lorauter.router.v1 import router_pb2 as pb
from lorauter.router.v1 import router_pb2_grpc
from lorauter.server.grpc import GrpcServer
from tests.budgets import tries
from tests.integration.gateway_servers.conftest import Shelf
from tests.integration.gateway_servers.load import Outcome, ask, each, expected, until
from tests.integration.gateway_servers.stand import BASE_ID, POOL_ID, Background, Gateway, gateway
from tests.protocol_servers.process import Running
from tests.protocol_servers.vllm_adapters import READING
from tests.protocol_servers.weights import modules_of, read_weights

SINGLES, MIXES = 220, 80
SLOTS = 32
REQUESTS = tries(1_000, 400)
AT_A_TIME = 24
MAX_RANK = 32

Mixes = Mapping[str, Mapping[str, float]]
"""Weights of adapters by the name of a composition."""


class Choosing(router_pb2_grpc.RouterServiceServicer):
    """A router that decides for what a query names: ``use a-7`` or ``use m-7``.

    The real one would need hundreds of tasks to choose between so many.
    """

    def __init__(
        self, shelf: Shelf, mixes: Mapping[str, Mapping[str, float]], backends: list[pb.Backend]
    ) -> None:
        self._shelf = shelf
        self._mixes = mixes
        self._backends = backends

    async def Route(self, request: pb.RouteRequest, _: Any) -> pb.RouteResponse:
        found = re.search(r"use ([am]-\d+)", request.query)
        assert found
        weights = self._mixes.get(found[1], {found[1]: 1.0})
        best = max(weights, key=lambda name: weights[name])
        return pb.RouteResponse(
            decision_id="d" + found[1],
            pool=POOL_ID,
            action=pb.ROUTE_ACTION_ADAPTERS,
            adapters=[
                pb.WeightedAdapter(
                    adapter_id=name, version=1, weight=weight, digest=self._shelf.digests[name], rank=8
                )
                for name, weight in weights.items()
            ],
            best_single=pb.BestSingle(adapter_id=best, version=1, digest=self._shelf.digests[best], rank=8),
            measured=True,
        )

    async def GetSnapshot(self, _: Any, __: Any) -> pb.GetSnapshotResponse:
        pool = pb.PoolSnapshot(
            pool=POOL_ID,
            tenant="default",
            base_model=BASE_ID,
            backends=self._backends,
            serving=pb.ServingPolicy(compose_on_demand=True),
        )
        return pb.GetSnapshotResponse(generation="g" + "0" * 16, pools=[pool])

    async def ResolveAdapter(self, request: pb.ResolveAdapterRequest, _: Any) -> pb.ResolveAdapterResponse:
        digest = self._shelf.digests.get(request.adapter)
        if digest is None:
            raise NotFound("UNKNOWN_ADAPTER", f"adapter {request.adapter!r} does not exist")
        return pb.ResolveAdapterResponse(
            pool=POOL_ID, adapter_id=request.adapter, version=1, digest=digest, rank=8
        )


@dataclass
class Fleet:
    """The gateways, the replicas and what they serve."""

    gateways: list[Gateway]
    replicas: list[Running]
    shelf: Shelf
    mixes: Mixes
    composites: Mapping[str, Composite]


@pytest.fixture
def fleet(
    shelf: Shelf, serve: Callable[..., Running], background: Background, tmp_path: Path, redis_url: str
) -> Iterator[Fleet]:
    """Three gateways in front of three replicas with 32 slots, and 300 things to load."""
    singles = [f"a-{number}" for number in range(SINGLES)]
    for name in singles:
        shelf.make(name)
    draw = random.Random(5)
    mixes = {f"m-{number}": _weights(draw.sample(singles, 2)) for number in range(MIXES)}
    composites = {name: shelf.mix(weights, vllm_server(MAX_RANK)) for name, weights in mixes.items()}
    _write_out(redis_url, shelf, mixes, composites)
    replicas = [
        serve("vllm", max_loras=SLOTS, max_cpu_loras=2 * SLOTS, max_lora_rank=MAX_RANK, token_seconds=0.001)
        for _ in range(3)
    ]
    backends = [
        pb.Backend(
            backend_id=f"replica-{number}",
            kind="vllm",
            url=replica.url,
            adapter_slots=SLOTS,
            max_rank=MAX_RANK,
            adapters_path=str(shelf.store.root),
        )
        for number, replica in enumerate(replicas)
    ]
    router = Choosing(shelf, mixes, backends)  # type: ignore[abstract]  # a gateway calls no more
    with ExitStack() as stack:
        address = stack.enter_context(background.entered(_listening(router)))
        gateways = [
            stack.enter_context(gateway(address, tmp_path / f"log-{number}", redis_url=redis_url))
            for number in range(3)
        ]
        yield Fleet(gateways, replicas, shelf, mixes, composites)


@asynccontextmanager
async def _listening(router: Choosing) -> AsyncIterator[str]:
    server = GrpcServer()
    router_pb2_grpc.add_RouterServiceServicer_to_server(router, server.server)
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def _weights(names: list[str]) -> dict[str, float]:
    return {names[0]: 0.6, names[1]: 0.4}


def _write_out(
    redis_url: str,
    shelf: Shelf,
    mixes: Mapping[str, Mapping[str, float]],
    composites: Mapping[str, Composite],
) -> None:
    """Tells the gateways, as a worker does, that composites are written."""
    with redis.Redis.from_url(redis_url) as client:
        for name, weights in mixes.items():
            members = tuple(Member(each, 1, shelf.digests[each], weight) for each, weight in weights.items())
            wanted = Wanted("default", POOL_ID, "vllm", MAX_RANK, 1, members)
            written = Written(composites[name].name, composites[name].rank, members)
            client.hset(WRITTEN, key_of(wanted), dump_fate(written))


async def test_slots_are_shared_by_three_gateways_without_a_double_load_or_a_lost_one(fleet: Fleet) -> None:
    names = [*(f"a-{number}" for number in range(SINGLES)), *fleet.mixes]
    random.Random(3).shuffle(names)
    draw = random.Random(7)
    plan = [names[min(int(draw.paretovariate(0.35)) - 1, len(names) - 1)] for _ in range(REQUESTS)]
    plan[: len(names)] = names

    async def one(http: aiohttp.ClientSession, number: int) -> Outcome:
        body = {"inputs": prompt(plan, number), "parameters": {"max_new_tokens": 6}}
        return await ask(http, fleet.gateways[number % 3].url, Outcome(number, number % 2 == 0), body)

    outcomes = await each(AT_A_TIME, range(REQUESTS), one)
    failed = [outcome for outcome in outcomes if not outcome.is_whole]
    assert not failed, failed[:3]
    await _check_told_truly(fleet, plan, outcomes)
    served = Counter(outcome.headers["x-lorauter-composition"] for outcome in outcomes)
    assert served["composite"] > 0
    assert served["base"] == 0
    counters = [replica.counters() for replica in fleet.replicas]
    for counted in counters:
        assert counted["unloaded_in_use"] == {}
        assert counted["evicted_in_use"] == {}
        assert counted["evicted"] == {}, "the server's own cache never had to choose"
        assert counted["read_again"] == {}
        assert counted["loaded_twice"] == {}
        assert counted["most_registered"] <= SLOTS
        reloads = sum(counted["loads"].values()) - len(counted["loads"])
        assert reloads <= sum(counted["unloads"].values())
    await until(lambda: not any(r["in_flight"] for front in fleet.gateways for r in front.replicas()))
    evictions = sum(front.metric("lorauter_gateway_adapter_evictions_total") for front in fleet.gateways)
    assert sum(sum(counted["unloads"].values()) for counted in counters) == evictions > 0


def prompt(plan: list[str], number: int) -> str:
    return f"use {plan[number]} for #{number}#"


async def _check_told_truly(fleet: Fleet, plan: list[str], outcomes: list[Outcome]) -> None:
    """Every text is that of the composition that its answer names."""
    modules = modules_of(str(fleet.shelf.base))
    by_set = {_named(weights): fleet.composites[name].folder for name, weights in fleet.mixes.items()}
    for outcome in outcomes:
        told = outcome.headers["x-lorauter-adapters"]
        wanted = fleet.mixes.get(plan[outcome.number], {plan[outcome.number]: 1.0})
        if told == _named(wanted):
            assert "x-lorauter-degraded" not in outcome.headers
        else:
            assert told == _named({max(wanted, key=lambda name: wanted[name]): 1.0})
            assert outcome.headers["x-lorauter-degraded"]
        path = str(by_set[told]) if told in by_set else fleet.shelf.path(told.partition(";")[0])
        weights = read_weights(path, READING, modules)
        assert outcome.text == await expected(prompt(plan, outcome.number), weights, 6)


def _named(weights: Mapping[str, float]) -> str:
    ordered = sorted(weights.items(), key=lambda item: -item[1])
    return ", ".join(f"{name};w={weight}" for name, weight in ordered)
