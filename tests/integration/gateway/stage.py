"""Backends of all kinds in this process behind the gateway's own parts, without transports and routers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lorauter.access import Caller, Scope
from lorauter.router.v1 import router_pb2 as pb
from lorauter_gateway.adapters.books import Link, RedisBooks
from lorauter_gateway.adapters.composites import RedisComposites
from lorauter_gateway.domain.model import Answer, Generation, Sampling, Target
from lorauter_gateway.domain.plan import WeightedAdapter, wish_base, wish_decision, wish_pin
from lorauter_gateway.ports import BackendCall, Driver, Endpoint, Takes
from lorauter_gateway.service.admission import Admission
from lorauter_gateway.service.forwarding import Forwarder, Request
from lorauter_gateway.service.preparing import Preparer
from lorauter_gateway.service.replicas import Replicas
from lorauter_gateway.service.serving import Serving
from tests.integration.gateway.residents import Server

CALLER = Caller("default", frozenset({Scope.INVOKE}))
TAKES = {"tgi": Takes.LISTED, "vllm": Takes.LOADS, "engine": Takes.SETS}
HEX = {name: f"{number:064x}" for number, name in enumerate("abcdefgh", start=10)}


class Engine(Server):
    """A driver that takes any set; ``strengths`` are the effects of its adapters, 0.5 unless named."""

    def __init__(self) -> None:
        super().__init__(0)
        self.strengths: dict[str, float] = {}

    async def read(
        self, text: str, adapters: Sequence[WeightedAdapter], served_name: str, base_model: str
    ) -> Sequence[float]:
        effect = sum(adapter.weight * self.strengths.get(adapter.digest, 0.5) for adapter in adapters)
        return [-1.0 - effect * (n % 3) for n in range(20)]


class Drivers:
    """A Fleet of drivers by backend id."""

    def __init__(self, drivers: Mapping[str, Driver]) -> None:
        self._drivers = drivers

    def speaks(self, kind: str) -> bool:
        return kind in TAKES

    async def endpoints(self, tenant: str, backend: pb.Backend) -> Sequence[Endpoint]:
        driver = self._drivers[backend.backend_id]
        return [
            Endpoint(
                f"{backend.backend_id}@x", backend.backend_id, backend.kind, "x", TAKES[backend.kind], driver,
                backend.max_rank, backend.adapter_slots, "/adapters", 1, backend.max_concurrent_requests,
            )
        ]  # fmt: skip


@dataclass
class Stage:
    """What requests are forwarded by."""

    replicas: Replicas
    forwarder: Forwarder
    pool: pb.PoolSnapshot

    async def update(self) -> None:
        """Takes over what was changed in ``pool``."""
        await self.replicas.update(pb.GetSnapshotResponse(pools=[self.pool]))

    async def ask(self, decision: pb.RouteResponse | str | None = None) -> tuple[str, Serving]:
        """Returns the text and what served a decision, a pin of the adapter, or the base."""
        pool = self.replicas.pool("default", "p")
        assert pool
        if decision is None:
            wish = wish_base()
        elif isinstance(decision, str):
            pin = pb.ResolveAdapterResponse(
                pool="p", adapter_id=decision, version=1, digest=digest(decision), rank=8
            )
            wish = wish_pin(pin)
        else:
            wish = wish_decision(decision, self.pool.serving.refuse_degraded)
        generation = Generation("hi", Target(), Sampling(), 5, CALLER)
        with Admission(1000).enter("test") as slot:
            request = Request(pool, wish, None, generation, slot)
            answer, serving, visit = await self.forwarder.forward(request, _generate)
            visit.succeeded()
            visit.close()
        return answer.text, serving


async def _generate(driver: Driver, call: BackendCall) -> Answer:
    return await driver.generate(call)


def digest(name: str) -> str:
    return f"sha256:{HEX[name]}"


def decided(weights: Mapping[str, float], runners: str = "", rank: int = 8) -> pb.RouteResponse:
    """A measured decision; the largest weight is the best single adapter."""
    best = max(weights, key=lambda name: weights[name])
    return pb.RouteResponse(
        decision_id="d",
        pool="p",
        action=pb.ROUTE_ACTION_ADAPTERS,
        measured=True,
        adapters=[
            pb.WeightedAdapter(adapter_id=name, version=1, weight=weight, digest=digest(name), rank=rank)
            for name, weight in weights.items()
        ],
        best_single=single(best, rank),
        runners_up=[single(name, rank) for name in runners],
    )


def single(name: str, rank: int = 8) -> pb.BestSingle:
    return pb.BestSingle(adapter_id=name, version=1, digest=digest(name), rank=rank)


def manifest(name: str, *entries: tuple[str, Mapping[str, float]]) -> pb.Manifest:
    """A manifest of names with the weights of what they add."""
    return pb.Manifest(
        digest=name,
        entries=[
            pb.ManifestEntry(
                name=entry,
                members=[pb.ManifestMember(digest=digest(each), weight=w) for each, w in weights.items()],
                rank=8,
            )
            for entry, weights in entries
        ],
    )


def alone(*names: str) -> list[tuple[str, Mapping[str, float]]]:
    """The entries of adapters themselves."""
    return [(HEX[name], {name: 1.0}) for name in names]


@asynccontextmanager
async def staged(
    drivers: Mapping[str, Driver], backends: Sequence[pb.Backend], url: str | None = None, **pool: object
) -> AsyncIterator[Stage]:
    """Puts replicas and a forwarder together; ``pool`` are fields of its snapshot."""
    link = Link(url) if url else None
    replicas = Replicas(Drivers(drivers), RedisBooks(link) if link else None, 0.02, 256)
    preparer = Preparer(replicas, RedisComposites(link) if link else None)
    snapshot = pb.PoolSnapshot(tenant="default", pool="p", base_model="m", backends=backends, **pool)  # type: ignore[arg-type]
    stage = Stage(replicas, Forwarder(preparer), snapshot)
    try:
        await stage.update()
        yield stage
    finally:
        await preparer.close()
        await replicas.close()
        if link:
            await link.close()
