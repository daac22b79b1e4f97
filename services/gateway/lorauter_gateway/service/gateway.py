"""Answers requests: route, plan, choose a backend, forward; the one retry loop of the path is here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TypeVar

from lorauter.errors import InvalidArgument, LorauterError, NotFound, Unavailable
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
from lorauter_gateway.domain.plan import (
    Capabilities,
    Plan,
    plan_base,
    plan_decision,
    plan_pin,
)
from lorauter_gateway.ports import Backend, BackendCall, BackendFailed, Fleet, Limits, PieceStream, Router
from lorauter_gateway.service.admission import Admission, Slot
from lorauter_gateway.service.serving import OpenStream, Serving, deadline_in, record_failure, within

T = TypeVar("T")

TRIES = 2
"""A generation is tried on at most this many backends, and on none after its first token."""


@dataclass(frozen=True, slots=True)
class _Resolved:
    pool: PoolSnapshot
    decision: RouteResponse | None
    plan: Callable[[Capabilities], Plan]


class Gateway:
    """The use cases; every transport calls these and only translates."""

    def __init__(
        self, router: Router, fleet: Fleet, max_concurrent_requests: int, route_timeout_seconds: float
    ) -> None:
        self.router = router
        self._fleet = fleet
        self._admission = Admission(max_concurrent_requests)
        self._route_timeout_seconds = route_timeout_seconds

    def pools(self) -> list[PoolSnapshot]:
        """Returns the pools as last seen; none while the router was never reached."""
        known = self.router.snapshot()
        return list(known.pools) if known else []

    def lacking(self) -> str:
        """Returns what is missing to serve, empty if nothing is."""
        if self.router.snapshot() is None:
            return "no snapshot yet: the router was not reached"
        return "" if self.router.is_reachable() else "the router does not answer"

    async def describe(self) -> tuple[PoolSnapshot, Limits]:
        """Returns the first pool and the limits of one of its backends."""
        known = self.pools() or (await self.router.refresh()).pools
        if not known:
            raise NotFound("UNKNOWN_POOL", "there is no pool yet: create one in the registry")
        try:
            return known[0], await self._fleet.candidates(known[0])[0].backend.limits()
        except BackendFailed as failure:
            raise failure.error from None

    async def route(self, request: RouteRequest) -> RouteResponse:
        """Returns a decision and serves nothing."""
        return await self.router.route(request, self._route_timeout_seconds)

    async def generate(self, generation: Generation, route: str) -> tuple[Answer, Serving]:
        """Returns the whole answer and what served it.

        Raises LorauterError: Exhausted (GATEWAY_FULL) at once when too many run, FailedPrecondition
        (QUERY_REFUSED), Unavailable (ROUTER_UNAVAILABLE, NO_BACKEND, BACKEND_*), DeadlineExceeded.
        Cancelling stops the generation on the backend. ``route`` names the transport in metrics.
        """
        with self._admission.enter(route) as slot:
            async with within(deadline_in(generation.timeout_seconds)):
                resolved = await self._resolve(generation)
                return await self._forward(resolved, generation, slot, _generate)

    async def stream(self, generation: Generation, route: str) -> OpenStream:
        """Returns once the first piece is there; raises as generate does. The caller must aclose() it."""
        slot = self._admission.enter(route)
        deadline = deadline_in(generation.timeout_seconds)
        try:
            async with within(deadline):
                resolved = await self._resolve(generation)
                pieces, serving = await self._forward(resolved, generation, slot, _stream)
        except BaseException as error:
            slot.end(error)
            raise
        return OpenStream(serving, pieces, deadline, slot)

    async def _resolve(self, generation: Generation) -> _Resolved:
        target = generation.target
        if target.kind is TargetKind.BASE:
            return _Resolved(await self._pool(target.pool), None, lambda _: plan_base())
        if target.kind is TargetKind.PIN:
            pin = await self._pinned(target)
            return _Resolved(await self._pool(pin.pool), None, partial(plan_pin, pin))
        decision = await self.route(_route_request(generation))
        return _Resolved(await self._pool(decision.pool), decision, partial(plan_decision, decision))

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

    async def _pool(self, name: str) -> PoolSnapshot:
        seen = self.router.snapshot()
        if seen and (found := _find(seen, name)):
            return found
        known = await self.router.refresh()
        if found := _find(known, name):
            return found
        names = ", ".join(pool.pool for pool in known.pools)
        if name:
            raise NotFound("UNKNOWN_POOL", f"there is no pool {name[:80]!r}: use one of {names or '(none)'}")
        if names:
            raise InvalidArgument(
                "POOL_REQUIRED", f"name a pool, for there are several: {names}", field="pool"
            )
        raise NotFound("UNKNOWN_POOL", "there is no pool yet: create one in the registry")

    async def _forward(
        self,
        resolved: _Resolved,
        generation: Generation,
        slot: Slot,
        ask: Callable[[Backend, BackendCall], Awaitable[T]],
    ) -> tuple[T, Serving]:
        pool = resolved.pool
        failed: LorauterError = Unavailable("NO_BACKEND", f"pool {pool.pool!r} has no active backend")
        for number, candidate in enumerate(self._fleet.candidates(pool)[:TRIES]):
            plan = resolved.plan(candidate.backend.capabilities)
            call = BackendCall(generation.prompt, generation.sampling, plan.applied, pool.base_model)
            if number:
                metrics.RETRIES.labels(pool.pool).inc()
            else:
                metrics.OVERHEAD_SECONDS.observe(perf_counter() - slot.since)
            try:
                result = await ask(candidate.backend, call)
            except BackendFailed as failure:
                record_failure(candidate.backend_id, failure)
                if failure.is_down:
                    self._fleet.report_down(candidate.backend_id)
                if not failure.try_elsewhere:
                    raise failure.error from None
                failed = failure.error
                continue
            serving = Serving(resolved.decision, plan, candidate.backend_id, candidate.kind, pool.base_model)
            return result, serving
        raise failed


async def _generate(backend: Backend, call: BackendCall) -> Answer:
    return await backend.generate(call)


async def _stream(backend: Backend, call: BackendCall) -> PieceStream:
    return await backend.stream(call)


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
