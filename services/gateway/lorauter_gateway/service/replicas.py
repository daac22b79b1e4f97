"""All replicas that the router names: follows the registry, probes each one beside the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from lorauter.errors import Exhausted, Unavailable
from lorauter.router.v1.router_pb2 import GetSnapshotResponse, PoolSnapshot
from lorauter.telemetry import get_logger
from lorauter_gateway.domain.catalog import Catalog, Listed
from lorauter_gateway.domain.health import State
from lorauter_gateway.domain.limits import RetryBudget
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.ports import BackendFailed, Books, Endpoint, Fleet, Takes
from lorauter_gateway.service.canaries import Canaries, Subject
from lorauter_gateway.service.replica import Found, Pool, Replica
from lorauter_gateway.service.residence import Residence

_log = get_logger(__name__)


class Replicas:
    """Belongs to one event loop. ``concurrency`` is the limit of replicas that name none."""

    def __init__(
        self,
        fleet: Fleet,
        books: Books | None,
        probe_seconds: float,
        concurrency: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.canaries = Canaries()
        self._fleet = fleet
        self._books = books
        self._probe_seconds = probe_seconds
        self._concurrency = concurrency
        self._clock = clock
        self._pools: dict[tuple[str, str], Pool] = {}
        self._replicas: dict[str, Replica] = {}
        self._residences: dict[str, Residence] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._warming: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()

    def all(self) -> list[Replica]:
        """Returns all replicas, draining ones too."""
        return list(self._replicas.values())

    def pools(self) -> list[Pool]:
        """Returns the pools of the last snapshot."""
        return list(self._pools.values())

    def pool(self, tenant: str, name: str) -> Pool | None:
        """Returns a tenant's pool, or None if the last snapshot had none of that name."""
        return self._pools.get((tenant, name))

    def residence(self, replica: Replica) -> Residence | None:
        """Returns the adapters of a replica that loads them; None where it is no longer registered."""
        return self._residences.get(replica.id)

    def held(self, replica: Replica) -> list[str] | None:
        """Returns the names of what a replica is known to hold, or None if it takes any stored adapter."""
        if replica.takes is Takes.LOADS:
            return sorted(self._residences[replica.id].ready)
        if replica.takes is Takes.LISTED:
            return sorted(n for n, verdict in replica.verdicts.items() if verdict.found is Found.PASSED)
        return None

    async def update(self, snapshot: GetSnapshotResponse) -> None:
        """Takes over pools and backends as the router names them."""
        async with self._lock:
            pools: dict[tuple[str, str], Pool] = {}
            found: set[str] = set()
            for known in snapshot.pools:
                pools[known.tenant, known.pool] = await self._updated(known, found)
            self._pools = pools
            for name in self._replicas.keys() - found:
                await self._remove(name)
            if self._books is not None and "renewing" not in self._tasks:
                self._tasks["renewing"] = asyncio.create_task(self._renew(self._books))

    async def close(self) -> None:
        """Stops all probes and gives leases back."""
        replicas, self._replicas = self._replicas, {}
        for task in (*self._tasks.values(), *self._warming.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._warming.values(), return_exceptions=True)
        for residence in self._residences.values():
            await residence.close()
        for replica in replicas.values():
            replica.removed()

    async def _updated(self, known: PoolSnapshot, found: set[str]) -> Pool:
        pool = self._pools.get((known.tenant, known.pool)) or Pool(known, RetryBudget(self._clock))
        replicas = []
        for backend in known.backends:
            if not self._fleet.speaks(backend.kind):
                continue
            for endpoint in await self._fleet.endpoints(known.tenant, backend):
                replica = self._replicas.get(endpoint.replica) or self._add(endpoint, pool)
                replica.registered(endpoint, pool)
                found.add(replica.id)
                if not endpoint.draining:
                    replicas.append(replica)
        if pool.catalog.version != tuple(manifest.digest for manifest in known.manifests):
            pool.catalog = Catalog(known.manifests)
        pool.snapshot, pool.replicas = known, replicas
        return pool

    def _add(self, endpoint: Endpoint, pool: Pool) -> Replica:
        replica = Replica(endpoint, pool, self._clock, self._probe_seconds, self._concurrency)
        self._replicas[replica.id] = replica
        if endpoint.takes is Takes.LOADS:
            self._residences[replica.id] = Residence(replica, self._books, self.canaries)
        self._tasks[replica.id] = asyncio.create_task(self._watch(replica))
        return replica

    async def _remove(self, name: str) -> None:
        for tasks in (self._tasks, self._warming):
            if (task := tasks.pop(name, None)) is not None:
                task.cancel()
        if (residence := self._residences.pop(name, None)) is not None:
            await residence.close()
        self._replicas.pop(name).removed()

    async def _watch(self, replica: Replica) -> None:
        while self._replicas.get(replica.id) is replica:
            try:
                await self._probe(replica)
            except BackendFailed as failure:
                replica.failed(failure)
            except Exception:  # a probe that cannot be must not end all later ones
                _log.exception("gateway.probe.failed", replica=replica.id)
            await asyncio.sleep(self._probe_seconds)

    async def _probe(self, replica: Replica) -> None:
        health = replica.health
        if health.state is State.EJECTED and not health.probe_is_due():
            return
        replica.look()
        is_healthy = await replica.endpoint.driver.is_healthy()
        replica.probed(is_healthy)
        if not is_healthy:
            return
        if replica.limits is None:
            replica.limited(await replica.endpoint.driver.limits())
        if replica.takes is Takes.LOADS:
            await self._residences[replica.id].reconcile()
        elif replica.takes is Takes.LISTED:
            self._warm(replica)

    def _warm(self, replica: Replica) -> None:
        running = self._warming.get(replica.id)
        unknown = [e for e in replica.pool.catalog.entries.values() if e.name not in replica.verdicts]
        if unknown and (running is None or running.done()):
            self._warming[replica.id] = asyncio.create_task(self._checked(replica, unknown))

    async def _checked(self, replica: Replica, entries: list[Listed]) -> None:
        try:
            for entry in entries:
                if entry.name not in replica.verdicts:
                    await self.canaries.check(replica, subject_of(entry))
        except BackendFailed as failure:
            _log.info("gateway.canary.unread", replica=replica.id, problem=failure.error.message)

    async def _renew(self, books: Books) -> None:
        while True:
            await asyncio.sleep(books.lease_seconds / 3)
            await _all(residence.renew() for residence in list(self._residences.values()))


async def _all(work: Any) -> None:
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            _log.error("gateway.leases.not_renewed", problem=repr(result))


def subject_of(entry: Listed) -> Subject:
    """Returns what a canary reads of a manifest's entry."""
    return Subject(
        entry.name, tuple(WeightedAdapter("", 0, weight, digest) for digest, weight in entry.members)
    )


def check_room(pool: Pool) -> None:
    """Refuses at once where no replica can take another request: before it is routed, which costs more.

    Raises Unavailable (NO_BACKEND, BACKEND_KIND_UNKNOWN), Exhausted (BACKENDS_FULL).
    """
    if not pool.replicas:
        raise no_backend(pool.snapshot)
    if is_full(pool):
        raise backends_full(pool.id, 1.0)


def is_full(pool: Pool) -> bool:
    """Whether no replica can take another request, those that are let in already counted."""
    room = 0
    for replica in pool.replicas:
        room += max(0, replica.in_flight.limit - replica.in_flight.count)
    return room <= pool.waiting


def backends_full(pool: str, retry_after_seconds: float) -> Exhausted:
    """Returns the error where all replicas of a pool are at their limits."""
    return Exhausted(
        "BACKENDS_FULL",
        f"all backends of pool {pool!r} have as many requests as they take: retry in a second",
        retry_after_seconds=str(max(1, round(retry_after_seconds))),
    )


def no_backend(pool: PoolSnapshot) -> Unavailable:
    """Returns the error where a pool has no replica."""
    active = [backend for backend in pool.backends if not backend.draining]
    if not active:
        message = f"pool {pool.pool!r} has no active backend: register one"
        return Unavailable("NO_BACKEND", message, pool=pool.pool)
    unresolved = [backend.backend_id for backend in active if backend.url.startswith("dns+")]
    if unresolved:
        names = ", ".join(unresolved)
        message = f"pool {pool.pool!r} has no backend whose address resolves: look at {names}"
        return Unavailable("NO_BACKEND", message, pool=pool.pool)
    kinds = ", ".join(sorted({backend.kind for backend in active}))
    return Unavailable(
        "BACKEND_KIND_UNKNOWN",
        f"pool {pool.pool!r} has only backends of kinds that this gateway does not speak: {kinds}",
        pool=pool.pool,
    )
