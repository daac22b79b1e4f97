"""One replica of a backend as this gateway knows it: its health, its load, what it holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter

from lorauter import tracing
from lorauter.router.v1.router_pb2 import PoolSnapshot
from lorauter.telemetry import get_logger
from lorauter_gateway import metrics
from lorauter_gateway.domain.catalog import Catalog
from lorauter_gateway.domain.health import Health, State
from lorauter_gateway.domain.limits import InFlight, RetryBudget
from lorauter_gateway.domain.model import Answer
from lorauter_gateway.ports import BackendFailed, Endpoint, Limits, Takes
from lorauter_gateway.service.inference import answered

_log = get_logger(__name__)

LOST = frozenset({"BACKEND_UNREACHABLE", "BACKEND_BROKE_OFF"})
"""Reasons of failures after which the replica may be another one."""

CANARY_SECONDS = 60.0
"""Pause between checks of an adapter on a replica that composes sets itself, where the last one failed."""


class Found(StrEnum):
    """What a canary found of an adapter on a replica."""

    PASSED = "passed"
    ABSENT = "absent"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of an adapter, why if it did not pass, and until when that holds on the clock."""

    found: Found
    reason: str = ""
    until: float = math.inf


class Replica:
    """A replica. What was found of its adapters holds until it was away and came back."""

    def __init__(
        self, endpoint: Endpoint, pool: Pool, clock: Callable[[], float], probe_seconds: float, most: int
    ) -> None:
        self.endpoint = endpoint
        self.pool = pool
        self.health = Health(clock, probe_seconds)
        self.in_flight = InFlight(endpoint.max_concurrent_requests or most)
        self.limits: Limits | None = None
        self.verdicts: dict[str, Verdict] = {}
        self._next_canary: dict[str, float] = {}
        self.incarnation = 0
        self.is_lost = False
        self.gauge = metrics.REPLICA_IN_FLIGHT.labels(endpoint.backend_id)
        self.until_first = metrics.BACKEND_SECONDS.labels(endpoint.backend_id, "first")
        self.until_whole = metrics.BACKEND_SECONDS.labels(endpoint.backend_id, "whole")
        self._most = most
        self._clock = clock
        self._counted: State | None = None
        self._count()

    @property
    def id(self) -> str:
        """Its name among all replicas."""
        return self.endpoint.replica

    @property
    def takes(self) -> Takes:
        """How it comes to serve adapters."""
        return self.endpoint.takes

    def registered(self, endpoint: Endpoint, pool: Pool) -> None:
        """Takes over what was changed in the registry."""
        self.pool = pool
        if endpoint != self.endpoint:
            self.endpoint = endpoint
            self._allow()

    def limited(self, limits: Limits) -> None:
        """Takes over what the replica says about itself."""
        self.limits = limits
        self._allow()

    def _allow(self) -> None:
        said = self.limits.max_concurrent_requests if self.limits else 0
        self.in_flight.allow(self.endpoint.max_concurrent_requests or said or self._most)

    def has_room(self) -> bool:
        """Whether a request may go there now."""
        return self.in_flight.has_room() and self.health.may_try()

    def began(self) -> None:
        """Notes an answer that has begun."""
        self.health.began()
        self._count()

    def succeeded(self) -> None:
        """Notes a whole answer."""
        self.health.success()
        self.in_flight.succeeded()
        self._count()

    def failed(self, failure: BackendFailed) -> None:
        """Notes a failure that is not the caller's."""
        if failure.is_noted:
            return
        failure.is_noted = True
        reason = failure.error.reason
        metrics.BACKEND_FAILURES.labels(self.endpoint.backend_id, reason).inc()
        if failure.retry_after_seconds is not None:
            self.in_flight.refused()
        if failure.is_fault:
            self.health.fault()
            if reason in LOST:
                self.is_lost = True
        self._count()

    def look(self) -> None:
        """Notes where its process ended, which a quick successor hides from probes."""
        if self.endpoint.driver.was_cut():
            self._came_back()

    def probed(self, is_healthy: bool) -> None:
        """Notes what it answered when it was asked whether it is healthy."""
        if self.health.state is State.EJECTED:
            self.health.probed(is_healthy)
        elif not is_healthy:
            self.health.fault()
        if not is_healthy:
            self.is_lost = True
        elif self.is_lost:
            self._came_back()
        self._count()

    def _came_back(self) -> None:
        self.is_lost = False
        self.incarnation += 1
        self.limits = None
        self.verdicts.clear()
        self._next_canary.clear()
        _log.info("gateway.replica.came_back", replica=self.id)

    def may_canary(self, name: str) -> bool:
        """Whether to read with an adapter now: a check that came to nothing is not made again at once."""
        now = self._clock()
        if now < self._next_canary.get(name, 0.0):
            return False
        self._next_canary[name] = now + CANARY_SECONDS
        return True

    def is_quarantined(self, name: str) -> bool:
        """Whether an adapter is not to be used there."""
        verdict = self.verdicts.get(name)
        return verdict is not None and verdict.found is not Found.PASSED and self._clock() < verdict.until

    def judged(self, name: str, verdict: Verdict) -> None:
        """Remembers what a canary found."""
        self.verdicts[name] = verdict
        if verdict.found is not Found.PASSED:
            metrics.CANARY_FAILURES.labels(self.endpoint.backend_id, verdict.found).inc()
            _log.warning(
                "gateway.canary.failed",
                replica=self.id,
                name=name,
                found=verdict.found.value,
                problem=verdict.reason,
            )

    def _count(self) -> None:
        if self.health.state is self._counted:
            return
        if self._counted is not None:
            metrics.REPLICAS.labels(self.endpoint.backend_id, self._counted).dec()
            _log.info("gateway.replica.changed", replica=self.id, state=self.health.state.value)
        if self.health.state is State.EJECTED:
            metrics.EJECTIONS.labels(self.endpoint.backend_id).inc()
        self._counted = self.health.state
        metrics.REPLICAS.labels(self.endpoint.backend_id, self._counted).inc()

    def removed(self) -> None:
        """Notes that it is no longer registered."""
        if self._counted is not None:
            metrics.REPLICAS.labels(self.endpoint.backend_id, self._counted).dec()
            self._counted = None


@dataclass(slots=True)
class Pool:
    """A pool with its replicas. ``waiting`` counts requests that are let in and on no replica yet."""

    snapshot: PoolSnapshot
    budget: RetryBudget
    replicas: list[Replica] = field(default_factory=list)
    catalog: Catalog = field(default_factory=Catalog)
    waiting: int = 0
    turn: int = 0

    @property
    def id(self) -> str:
        """The pool's id, which another tenant's may have too."""
        return self.snapshot.pool

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.snapshot.tenant

    def reference(self) -> Replica | None:
        """Returns a healthy replica that composes weighted sets itself, to compare others with."""
        for replica in self.replicas:
            if replica.takes is Takes.SETS and replica.health.state is State.HEALTHY:
                return replica
        return None


class Visit:
    """A request on a replica, which makes room again when it is closed."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.served_name = ""
        self._on_close: Callable[[], None] | None = None
        self._is_open = True
        self._is_judged = False
        self.span = tracing.OFF
        self._since = perf_counter()
        replica.in_flight.enter()
        replica.health.begin()
        replica.gauge.inc()

    def holds(self, drop: Callable[[], None]) -> None:
        """Calls ``drop`` when the visit is closed."""
        self._on_close = drop

    def asked(self, span: tracing.Span) -> None:
        """Notes that the replica is asked now, which is what ``span`` is of."""
        self.span = span
        self._since = perf_counter()

    def began(self) -> None:
        """Notes that the replica has begun to answer."""
        self.replica.until_first.observe(perf_counter() - self._since)
        self.replica.began()

    def succeeded(self, answer: Answer | None = None) -> None:
        """Notes that the replica answered."""
        self._is_judged = True
        self.replica.until_whole.observe(perf_counter() - self._since)
        if answer is not None:
            answered(self.span, answer)
            for kind, count in (
                ("prompt", answer.usage.prompt_tokens),
                ("completion", answer.usage.completion_tokens),
            ):
                metrics.TOKENS.labels(self.replica.pool.id, kind).inc(count)
        self.replica.succeeded()

    def failed(self, failure: BackendFailed) -> None:
        """Notes that it did not."""
        self._is_judged = True
        self.span.fail(failure.error.reason)
        if not failure.is_fault:
            self.replica.health.end()
        self.replica.failed(failure)

    def close(self) -> None:
        """Makes room, once."""
        if not self._is_open:
            return
        self._is_open = False
        if not self._is_judged:
            self.replica.health.end()
            self.span.fail("UNFINISHED")
        self.span.end()
        self.replica.in_flight.leave()
        self.replica.gauge.dec()
        if self._on_close is not None:
            self._on_close()
