"""The one retry loop of the path: tries a request's options, best first, on the replicas that serve them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from lorauter import tracing
from lorauter.errors import Exhausted, LorauterError
from lorauter.router.v1.router_pb2 import RouteResponse
from lorauter_gateway import metrics
from lorauter_gateway.domain.health import State, set_aside
from lorauter_gateway.domain.model import Generation
from lorauter_gateway.domain.placement import Place, ordered
from lorauter_gateway.domain.plan import Option, Plan, Skipped, Why, Wish, instead, not_servable
from lorauter_gateway.ports import BackendCall, BackendFailed, Driver, Takes
from lorauter_gateway.service.admission import Slot
from lorauter_gateway.service.inference import begun, composition_name
from lorauter_gateway.service.preparing import Preparer
from lorauter_gateway.service.replica import Pool, Replica, Visit
from lorauter_gateway.service.replicas import backends_full
from lorauter_gateway.service.serving import Serving

T = TypeVar("T")

TRIES = 3
"""A generation is tried on at most this many replicas, and on none after its first token."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose wish is known. ``kept`` says what its conversation keeps in place of the decision's."""

    pool: Pool
    wish: Wish
    decision: RouteResponse | None
    generation: Generation
    slot: Slot
    conversation: bytes | None = None
    kept: str = ""


@dataclass(slots=True)
class _Trouble:
    """What has kept a request from being answered so far."""

    tries: int = 0
    paid: int = 0
    left: list[str] = field(default_factory=list)
    first: Skipped | None = None
    error: LorauterError | None = None
    retry_after_seconds: list[float] = field(default_factory=list)
    overload: LorauterError | None = None
    missed: list[str] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return bool(self.retry_after_seconds)

    def skipped(self, skipped: Skipped) -> None:
        self.first = self.first or skipped

    def full(self) -> None:
        self.retry_after_seconds.append(1.0)
        self.skipped(Skipped(Why.FULL, "its backends have as many requests as they take"))

    def failed(self, replica: Replica, failure: BackendFailed) -> None:
        if failure.retry_after_seconds is not None:
            self.retry_after_seconds.append(failure.retry_after_seconds)
            self.overload = failure.error
        else:
            self.error = failure.error
        (self.missed if failure.is_missing else self.left).append(replica.id)
        why = Why.FULL if failure.retry_after_seconds is not None else Why.FAILED
        self.skipped(Skipped(why, f"{replica.endpoint.backend_id} failed: {failure.error.message}"))

    def takes_again(self, replica: Replica) -> bool:
        """Whether a replica that did not know an adapter is asked once more, after loading it."""
        return replica.takes is Takes.LOADS and self.missed == [replica.id] and self.tries == 1

    def final(self, request: Request) -> LorauterError:
        if self.is_full:
            seconds = min(self.retry_after_seconds)
            if self.overload is None:
                return backends_full(request.pool.id, seconds)
            return Exhausted(
                self.overload.reason, self.overload.message, retry_after_seconds=str(max(1, round(seconds)))
            )
        return self.error or not_servable(request.wish, self.first)


class Forwarder:
    """Forwards requests. Stateless but for what replicas remember."""

    def __init__(self, preparer: Preparer) -> None:
        self._preparer = preparer

    async def forward(
        self, request: Request, ask: Callable[[Driver, BackendCall], Awaitable[T]]
    ) -> tuple[T, Serving, Visit]:
        """Returns what ``ask`` returns of the first replica that answers.

        The caller must say how the visit ends and close it.

        Raises LorauterError: FailedPrecondition (ADAPTER_NOT_LOADED, COMPOSITION_NOT_SERVABLE), Exhausted
        (BACKENDS_FULL, BACKEND_OVERLOADED), Unavailable (BACKEND_*), or what the caller's request deserves.
        """
        trouble = _Trouble()
        request.pool.budget.note_request()
        for number, option in enumerate(request.wish):
            if number and option.is_base and trouble.is_full:
                continue  # what waits for a moment is better than the base
            candidates = self._candidates(request.pool, option, trouble.left)
            while candidates:
                replica = candidates.pop(0)
                if not replica.in_flight.has_room():
                    trouble.full()
                    continue
                found = await self._try(request, option, replica, trouble, ask)
                if found is not None:
                    return found
                if trouble.takes_again(replica):
                    candidates.insert(0, replica)
        raise trouble.final(request)

    async def _try(
        self,
        request: Request,
        option: Option,
        replica: Replica,
        trouble: _Trouble,
        ask: Callable[[Driver, BackendCall], Awaitable[T]],
    ) -> tuple[T, Serving, Visit] | None:
        """Returns None where another replica, or option, is to be tried."""
        pool, wish = request.pool, request.wish
        if trouble.tries > trouble.paid and not self._may_retry(pool, trouble):
            raise trouble.final(request)
        visit = Visit(replica)
        try:
            with tracing.span("prepare"):
                plan = await self._preparer.prepare(visit, option, wish.keeps_decision)
            visit.served_name = plan.served_name
            visit.asked(begun(request.generation, plan, replica.endpoint, pool.snapshot.base_model))
            with visit.span.within():
                result = await ask(replica.endpoint.driver, _call(request, plan, trouble))
        except Skipped as skipped:
            visit.close()
            trouble.skipped(skipped)
            return None
        except BackendFailed as failure:
            visit.failed(failure)
            try:
                self._failed(visit, failure, trouble)
            finally:
                visit.close()  # only now, for what is forgotten must not be given back first
            return None
        except BaseException:
            visit.close()
            raise
        visit.began()
        if option is not wish.first:
            first = trouble.first or Skipped(Why.NO_BACKEND, "no backend of the pool serves it")
            plan = instead(plan, wish.first, first)
        if plan.why is not None:
            metrics.DEGRADED.labels(pool.id, plan.why).inc()
        metrics.SERVED.labels(pool.id, composition_name(plan.composition), replica.endpoint.kind).inc()
        base_model = pool.snapshot.base_model
        caller = request.generation.caller
        serving = Serving(
            request.decision,
            plan,
            replica.endpoint,
            base_model,
            request.kept,
            is_foreign=pool.tenant != caller.tenant and not caller.any_tenant,
            quota=request.slot.charge.headers() if request.slot.charge else {},
        )
        return result, serving, visit

    def _may_retry(self, pool: Pool, trouble: _Trouble) -> bool:
        if trouble.tries >= TRIES:
            return False
        if not pool.budget.take():
            metrics.RETRIES_REFUSED.labels(pool.id).inc()
            return False
        metrics.RETRIES.labels(pool.id).inc()
        trouble.paid = trouble.tries
        return True

    def _failed(self, visit: Visit, failure: BackendFailed, trouble: _Trouble) -> None:
        trouble.tries += 1
        trouble.failed(visit.replica, failure)
        if failure.is_missing:
            self._preparer.forget(visit.replica, visit.served_name)
        elif not failure.try_elsewhere:
            raise failure.error from None

    def _candidates(self, pool: Pool, option: Option, left: list[str]) -> list[Replica]:
        replicas = [replica for replica in pool.replicas if replica.id not in left]
        if len(pool.replicas) == 1:
            return replicas
        if any(replica.health.state is not State.HEALTHY for replica in replicas):
            aside, last = set_aside({replica.id: replica.health for replica in pool.replicas})
            replicas = [r for r in replicas if r.id not in aside and r.health.may_try()] or replicas
        else:
            last = set()
        name = self._preparer.placed_by(option)
        places = [
            Place(
                replica.id,
                replica.in_flight.count,
                loads=replica.takes is Takes.LOADS,
                has_no_slot=self._preparer.lacks_slot(replica, name),
                is_last=replica.id in last,
            )
            for replica in replicas
        ]
        pool.turn += 1
        by_id = {replica.id: replica for replica in replicas}
        return [by_id[found] for found in ordered(name, places, pool.turn)]


def _call(request: Request, plan: Plan, trouble: _Trouble) -> BackendCall:
    if not trouble.tries:
        metrics.OVERHEAD_SECONDS.observe(perf_counter() - request.slot.since)
    generation, base_model = request.generation, request.pool.snapshot.base_model
    return BackendCall(generation.prompt, generation.sampling, plan.applied, plan.served_name, base_model)
