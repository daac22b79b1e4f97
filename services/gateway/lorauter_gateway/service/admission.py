"""Bounds how many generations run, and counts how they end."""

from __future__ import annotations

import asyncio
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from lorauter import tracing
from lorauter.errors import Exhausted, LorauterError
from lorauter.identifiers import BASE
from lorauter.router.v1.router_pb2 import RouteResponse
from lorauter.telemetry import get_logger
from lorauter_gateway import metrics
from lorauter_gateway.domain.model import Usage
from lorauter_gateway.service.inference import composition_name
from lorauter_gateway.service.quotas import Charge

if TYPE_CHECKING:
    from lorauter_gateway.service.serving import Serving

_log = get_logger(__name__)


class Admission:
    """Lets ``limit`` generations run at a time and refuses the rest at once: queues belong to backends."""

    def __init__(self, limit: int, logs: bool = False) -> None:
        """``logs``: whether each generation is a line of the log."""
        self.logs = logs
        self._limit = limit
        self._taken = 0

    def check(self) -> None:
        """Raises Exhausted (GATEWAY_FULL) if all slots are taken."""
        if self._taken >= self._limit:
            raise Exhausted(
                "GATEWAY_FULL",
                f"{self._limit} generations are under way, which is the most: retry in a second",
                retry_after_seconds="1",
            )

    def enter(self, route: str) -> Slot:
        """Returns a slot; raises as check() does."""
        try:
            self.check()
        except Exhausted as error:
            metrics.REQUESTS.labels(route, error.reason).inc()
            raise
        self._taken += 1
        metrics.IN_FLIGHT.inc()
        return Slot(self, route)

    def leave(self) -> None:
        """Gives a slot back."""
        self._taken -= 1
        metrics.IN_FLIGHT.dec()


class Slot:
    """Room for one generation, until end() or the with block's end, whichever comes first."""

    def __init__(self, admission: Admission, route: str) -> None:
        self.since = perf_counter()
        self.notes: dict[str, str] = {}
        """What the log says of it besides."""
        self.charge: Charge | None = None
        """What it took of its key's limits."""
        self.used: Usage | None = None
        self.pieces = 0
        self._admission = admission
        self._route = route
        self._is_open = True

    def decided(self, decision: RouteResponse) -> None:
        """Names the decision in the trace, and in whatever is logged for this request from here on."""
        structlog.contextvars.bind_contextvars(decision=decision.decision_id)
        if tracing.is_on():
            tracing.current().set(
                {
                    "lorauter.decision": decision.decision_id,
                    "lorauter.pool": decision.pool,
                    "lorauter.generation": decision.generation,
                    "lorauter.typicality": decision.typicality,
                }
            )

    def served(self, serving: Serving) -> None:
        """Notes what serves it, for the log."""
        if self._admission.logs:
            adapters = " ".join(f"{a.adapter_id}@{a.version}:{a.weight:.3f}" for a in serving.plan.adapters)
            self.notes = {
                "adapters": adapters or BASE,
                "composition": composition_name(serving.plan.composition),
                "backend": serving.backend_id,
                "replica": serving.replica,
                "degraded": serving.plan.degraded_reason,
            }

    def end(self, error: BaseException | None) -> None:
        """Gives the slot back, once, and counts the outcome."""
        if not self._is_open:
            return
        self._is_open = False
        self._admission.leave()
        if self.charge is not None:
            used = self.used.prompt_tokens + self.used.completion_tokens if self.used else None
            self.charge.end(error, used, self.pieces)
        outcome = _outcome(error)
        metrics.REQUESTS.labels(self._route, outcome).inc()
        if self._admission.logs:
            seconds = round(perf_counter() - self.since, 4)
            _log.info(
                "gateway.generation.ended", route=self._route, outcome=outcome, seconds=seconds, **self.notes
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self.end(error)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, LorauterError):
        return error.reason
    return "cancelled" if isinstance(error, asyncio.CancelledError | GeneratorExit) else "INTERNAL"
