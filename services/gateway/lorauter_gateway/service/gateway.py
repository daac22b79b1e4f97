"""Answers requests: makes room, routes, and forwards to what may answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorauter.errors import Exhausted, InvalidArgument, NotFound
from lorauter.router.v1.router_pb2 import (
    ChatMessage,
    GetSnapshotResponse,
    PoolSnapshot,
    ResolveAdapterResponse,
    RouteRequest,
    RouteResponse,
)
from lorauter_gateway import metrics
from lorauter_gateway.domain.model import Answer, Generation, Target, TargetKind
from lorauter_gateway.domain.plan import wish_base, wish_decision, wish_pin
from lorauter_gateway.domain.stickiness import Stickiness
from lorauter_gateway.ports import BackendCall, BackendFailed, Composites, Driver, Limits, PieceStream, Router
from lorauter_gateway.service.admission import Admission, Slot
from lorauter_gateway.service.forwarding import Forwarder, Request
from lorauter_gateway.service.preparing import Preparer
from lorauter_gateway.service.replica import Pool, Replica
from lorauter_gateway.service.replicas import Replicas, check_room, is_full, no_backend
from lorauter_gateway.service.serving import OpenStream, Serving, deadline_in, within


class Gateway:
    """The use cases; every transport calls these and only translates."""

    def __init__(
        self,
        router: Router,
        replicas: Replicas,
        composites: Composites | None,
        admission: Admission,
        route_timeout_seconds: float,
        stickiness: Stickiness,
    ) -> None:
        self.router = router
        self._replicas = replicas
        self._preparer = Preparer(replicas, composites)
        self._forwarder = Forwarder(self._preparer)
        self._admission = admission
        self._route_timeout_seconds = route_timeout_seconds
        self._stickiness = stickiness

    def pools(self) -> list[PoolSnapshot]:
        """Returns the pools as last seen; none while the router was never reached."""
        known = self.router.snapshot()
        return list(known.pools) if known else []

    def replicas(self) -> list[tuple[Replica, list[str] | None]]:
        """Returns all replicas with the names of what each is known to hold."""
        return [(replica, self._replicas.held(replica)) for replica in self._replicas.all()]

    def lacking(self) -> str:
        """Returns what is missing to serve, empty if nothing is."""
        if self.router.snapshot() is None:
            return "no snapshot yet: the router was not reached"
        return "" if self.router.is_reachable() else "the router does not answer"

    async def close(self) -> None:
        """Stops what runs beside requests."""
        await self._preparer.close()

    async def describe(self) -> tuple[PoolSnapshot, Limits]:
        """Returns the first pool and the limits of one of its replicas."""
        known = self.pools() or (await self.router.refresh()).pools
        if not known:
            raise NotFound("UNKNOWN_POOL", "there is no pool yet: create one in the registry")
        pool = await self._pool(known[0].pool)
        if not pool.replicas:
            raise no_backend(pool.snapshot)
        for replica in pool.replicas:
            if replica.limits is not None:
                return pool.snapshot, replica.limits
        try:
            return pool.snapshot, await pool.replicas[0].endpoint.driver.limits()
        except BackendFailed as failure:
            raise failure.error from None

    async def route(self, request: RouteRequest) -> RouteResponse:
        """Returns a decision and serves nothing."""
        return await self.router.route(request, self._route_timeout_seconds)

    def check_open(self, route: str) -> None:
        """Refuses what has to be refused whatever it asks for, before anybody reads it, which costs more.

        Raises Exhausted (GATEWAY_FULL, BACKENDS_FULL where every pool is full).
        """
        try:
            self._admission.check()
            pools = self._replicas.pools()
            if pools and all(pool.replicas and is_full(pool) for pool in pools):
                check_room(pools[0])
        except Exhausted as error:
            metrics.REQUESTS.labels(route, error.reason).inc()
            raise

    async def generate(self, generation: Generation, route: str) -> tuple[Answer, Serving]:
        """Returns the whole answer and what served it.

        Raises LorauterError: Exhausted (GATEWAY_FULL, BACKENDS_FULL) at once when too many run,
        FailedPrecondition (QUERY_REFUSED, ADAPTER_NOT_LOADED, COMPOSITION_NOT_SERVABLE), Unavailable
        (ROUTER_UNAVAILABLE, NO_BACKEND, BACKEND_*), DeadlineExceeded. Cancelling stops the generation on the
        backend. ``route`` names the transport in metrics.
        """
        with self._admission.enter(route) as slot:
            async with within(deadline_in(generation.timeout_seconds)):
                request = await self._resolve(generation, slot)
                answer, serving, visit = await self._forwarder.forward(request, _generate)
                slot.served(serving)
                self._stickiness.served(request.conversation, serving.plan.adapters)
                visit.succeeded(answer)
                visit.close()
                return answer, serving

    async def stream(self, generation: Generation, route: str) -> OpenStream:
        """Returns once the first piece is there; raises as generate does. The caller must aclose() it."""
        slot = self._admission.enter(route)
        deadline = deadline_in(generation.timeout_seconds)
        try:
            async with within(deadline):
                request = await self._resolve(generation, slot)
                pieces, serving, visit = await self._forwarder.forward(request, _stream)
                slot.served(serving)
                self._stickiness.served(request.conversation, serving.plan.adapters)
        except BaseException as error:
            slot.end(error)
            raise
        return OpenStream(serving, pieces, deadline, slot, visit)

    async def _resolve(self, generation: Generation, slot: Slot) -> Request:
        target = generation.target
        pool = await self._pool(target.pool) if target.kind is TargetKind.BASE else self._only(target.pool)
        with _waiting(pool):
            if target.kind is TargetKind.BASE:
                assert pool is not None
                return Request(pool, wish_base(), None, generation, slot)
            if target.kind is TargetKind.PIN:
                pin = await self._pinned(target)
                return Request(await self._pool(pin.pool), wish_pin(pin), None, generation, slot)
            asked = _route_request(generation)
            choice = self._stickiness.choose(asked, await self.route(asked))
            slot.decided(choice.decision)
            pool = await self._pool(choice.decision.pool)
            wish = wish_decision(choice.decision, pool.snapshot.serving.refuse_degraded)
            return Request(pool, wish, choice.decision, generation, slot, choice.key, choice.reason)

    def _only(self, name: str) -> Pool | None:
        """Returns the pool that a request is for, as far as that is known before it is routed."""
        if name:
            return self._replicas.pool(name)
        known = self.router.snapshot()
        return self._replicas.pool(known.pools[0].pool) if known and len(known.pools) == 1 else None

    async def _pinned(self, target: Target) -> ResolveAdapterResponse:
        known = self.router.snapshot() or await self.router.refresh()
        pools = [target.pool] if target.pool or len(known.pools) == 1 else [pool.pool for pool in known.pools]
        for pool in pools[:-1]:
            try:
                return await self.router.resolve(pool, target.adapter, self._route_timeout_seconds)
            except NotFound:
                continue
        last = pools[-1] if pools else ""
        return await self.router.resolve(last, target.adapter, self._route_timeout_seconds)

    async def _pool(self, name: str) -> Pool:
        seen = self.router.snapshot()
        if seen and (found := _find(seen, name)) and (pool := self._replicas.pool(found.pool)):
            return pool
        known = await self.router.refresh()
        await self._replicas.update(known)
        if (found := _find(known, name)) and (pool := self._replicas.pool(found.pool)):
            return pool
        names = ", ".join(pool.pool for pool in known.pools)
        if name:
            raise NotFound("UNKNOWN_POOL", f"there is no pool {name[:80]!r}: use one of {names or '(none)'}")
        if names:
            raise InvalidArgument(
                "POOL_REQUIRED", f"name a pool, for there are several: {names}", field="pool"
            )
        raise NotFound("UNKNOWN_POOL", "there is no pool yet: create one in the registry")


@contextmanager
def _waiting(pool: Pool | None) -> Iterator[None]:
    """Refuses what finds no room, and keeps the room for what does until it is on a replica."""
    if pool is None:
        yield
        return
    check_room(pool)
    pool.waiting += 1
    try:
        yield
    finally:
        pool.waiting -= 1


async def _generate(driver: Driver, call: BackendCall) -> Answer:
    return await driver.generate(call)


async def _stream(driver: Driver, call: BackendCall) -> PieceStream:
    return await driver.stream(call)


def _route_request(generation: Generation) -> RouteRequest:
    request = RouteRequest()
    request.CopyFrom(generation.routing)
    request.query = ""
    del request.messages[:]
    request.pool = generation.target.pool or request.pool
    if isinstance(generation.prompt, str):
        request.query = generation.prompt
    else:
        request.messages.extend(ChatMessage(role=m.role, content=m.content) for m in generation.prompt)
    return request


def _find(known: GetSnapshotResponse, name: str) -> PoolSnapshot | None:
    if not name:
        return known.pools[0] if len(known.pools) == 1 else None
    return next((pool for pool in known.pools if pool.pool == name), None)
