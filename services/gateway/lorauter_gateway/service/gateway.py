"""Answers requests: makes room, routes, and forwards to what may answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from lorauter.access import PUBLIC_TENANT, Caller
from lorauter.errors import Exhausted, NotFound
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
from lorauter_gateway.domain.visibility import View, Views
from lorauter_gateway.ports import BackendCall, BackendFailed, Composites, Driver, Limits, PieceStream, Router
from lorauter_gateway.service.admission import Admission, Slot
from lorauter_gateway.service.forwarding import Forwarder, Request
from lorauter_gateway.service.preparing import Preparer
from lorauter_gateway.service.quotas import Quotas
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
        quotas: Quotas,
    ) -> None:
        self.router = router
        self._replicas = replicas
        self._preparer = Preparer(replicas, composites)
        self._forwarder = Forwarder(self._preparer)
        self._admission = admission
        self._route_timeout_seconds = route_timeout_seconds
        self._stickiness = stickiness
        self._quotas = quotas
        self._views: tuple[GetSnapshotResponse | None, Views] = (None, Views(()))

    def pools(self, caller: Caller) -> list[PoolSnapshot]:
        """Returns the pools that a caller sees, its own first; none while the router was never reached."""
        return list(self._view(caller).pools.values())

    def replicas(self, caller: Caller) -> list[tuple[Replica, list[str] | None]]:
        """Returns the replicas of a caller's own pools with the names of what each is known to hold."""
        own = (replica for replica in self._replicas.all() if replica.pool.tenant == caller.tenant)
        return [(replica, self._replicas.held(replica)) for replica in own]

    def lacking(self) -> str:
        """Returns what is missing to serve, empty if nothing is."""
        trouble = self.router.trouble()
        if self.router.snapshot() is None:
            return f"no snapshot yet: {trouble or 'the router was not reached'}"
        return "" if self.router.is_reachable() else f"the router does not answer: {trouble}"

    async def close(self) -> None:
        """Stops what runs beside requests."""
        await self._quotas.close()
        await self._preparer.close()

    async def describe(self, caller: Caller) -> tuple[PoolSnapshot, Limits]:
        """Returns the first pool that a caller sees and the limits of one of its replicas."""
        if not (seen := self.pools(caller)):
            await self._replicas.update(await self.router.refresh())
            seen = self.pools(caller)
        pool = await self._pool(caller, seen[0].pool if seen else "")
        if not pool.replicas:
            raise no_backend(pool.snapshot)
        for replica in pool.replicas:
            if replica.limits is not None:
                return pool.snapshot, replica.limits
        try:
            return pool.snapshot, await pool.replicas[0].endpoint.driver.limits()
        except BackendFailed as failure:
            raise failure.error from None

    async def route(self, request: RouteRequest, caller: Caller) -> tuple[RouteResponse, Mapping[str, str]]:
        """Returns a decision, and headers that say what the key has left; serves nothing.

        Raises as generate() does.
        """
        charging = self._quotas.begin(caller, None)
        try:
            decision = await self._decided(request, caller)
        except BaseException as error:
            if charging is not None:
                (await charging).end(error, None, 0)
            raise
        return decision, (await charging).headers() if charging is not None else {}

    async def _decided(self, request: RouteRequest, caller: Caller) -> RouteResponse:
        request.tenant = caller.tenant
        return await self.router.route(request, self._route_timeout_seconds)

    def check_open(self, route: str, caller: Caller) -> None:
        """Refuses what has to be refused whatever it asks for, before anybody reads it, which costs more.

        Raises Exhausted (GATEWAY_FULL, QUOTA_EXCEEDED, BACKENDS_FULL where every pool is full that is seen).
        """
        try:
            self._admission.check()
            self._quotas.check(caller)
            seen = self._view(caller).pools.values()
            pools = [pool for each in seen if (pool := self._replicas.pool(each.tenant, each.pool))]
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
                slot.used = answer.usage
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
        """Finds out what is to answer, and asks meanwhile whether the key has enough left for it."""
        charging = self._quotas.begin(generation.caller, generation)
        try:
            return await self._resolved(generation, slot)
        finally:
            if charging is not None:
                slot.charge = await charging

    async def _resolved(self, generation: Generation, slot: Slot) -> Request:
        target, caller = generation.target, generation.caller
        is_base = target.kind is TargetKind.BASE
        pool = await self._pool(caller, target.pool) if is_base else self._known(caller, target.pool)
        with _waiting(pool):
            if is_base:
                assert pool is not None
                return Request(pool, wish_base(), None, generation, slot)
            if target.kind is TargetKind.PIN:
                pin = await self._pinned(target, caller)
                return Request(
                    await self._pool(caller, pin.pool, pin.tenant), wish_pin(pin), None, generation, slot
                )
            asked = _route_request(generation)
            choice = self._stickiness.choose(asked, await self._decided(asked, caller))
            slot.decided(choice.decision)
            pool = await self._pool(caller, choice.decision.pool, choice.decision.tenant)
            wish = wish_decision(choice.decision, pool.snapshot.serving.refuse_degraded)
            return Request(pool, wish, choice.decision, generation, slot, choice.key, choice.reason)

    def _view(self, caller: Caller) -> View:
        snapshot = self.router.snapshot()
        if self._views[0] is not snapshot:
            self._views = (snapshot, Views(snapshot.pools if snapshot else ()))
        return self._views[1].of(caller.tenant)

    def _known(self, caller: Caller, name: str, tenant: str = "") -> Pool | None:
        """Returns a pool that the caller sees, if it is known; ``tenant`` says whose, where that is told."""
        if tenant:
            return self._replicas.pool(tenant, name) if tenant in (caller.tenant, PUBLIC_TENANT) else None
        found = self._view(caller).find(name)
        return self._replicas.pool(found.tenant, found.pool) if found else None

    async def _pinned(self, target: Target, caller: Caller) -> ResolveAdapterResponse:
        if self.router.snapshot() is None:
            await self.router.refresh()
        view = self._view(caller)
        pools = [target.pool] if target.pool or view.only else list(view.pools)
        for pool in pools[:-1]:
            with suppress(NotFound):
                return await self._resolved_pin(caller, pool, target.adapter)
        return await self._resolved_pin(caller, pools[-1] if pools else "", target.adapter)

    async def _resolved_pin(self, caller: Caller, pool: str, adapter: str) -> ResolveAdapterResponse:
        return await self.router.resolve(caller.tenant, pool, adapter, self._route_timeout_seconds)

    async def _pool(self, caller: Caller, name: str, tenant: str = "") -> Pool:
        if (pool := self._known(caller, name, tenant)) is not None:
            return pool
        await self._replicas.update(await self.router.refresh())
        if (pool := self._known(caller, name, tenant)) is not None:
            return pool
        raise self._view(caller).lacking(name)


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
