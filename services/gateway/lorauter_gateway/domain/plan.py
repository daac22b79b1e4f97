"""From a decision and what a backend can do to what is asked of the backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorauter.errors import FailedPrecondition
from lorauter.gateway.v1.gateway_pb2 import Composition
from lorauter.identifiers import BASE
from lorauter.router.v1.router_pb2 import (
    ROUTE_ACTION_BASE,
    ROUTE_ACTION_REFUSE,
    ResolveAdapterResponse,
    RouteResponse,
)

EXACT = Composition.COMPOSITION_EXACT
SINGLE = Composition.COMPOSITION_SINGLE
ON_BASE = Composition.COMPOSITION_BASE


_ONE = "the backend serves one adapter per request, so the best single one replaces the weighted set"
_UNMEASURED = (
    "the weighted set was not measured to beat the best single adapter, so that one replaces the weighted set"
)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can serve.

    ``weighted_sets``: any weighted set, natively. ``adapters``: content digests that it can serve, or
    None if it loads any stored adapter on demand.
    """

    weighted_sets: bool
    adapters: frozenset[str] | None = None

    def serves(self, digest: str) -> bool:
        """Whether the backend can serve the adapter with this content digest."""
        return self.adapters is None or digest in self.adapters


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """A share of the answer; ``digest`` is empty for the base, which adds nothing to itself."""

    adapter_id: str
    version: int
    weight: float
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask of a backend. ``degraded_reason`` says why it differs from the decision, if it does."""

    composition: Composition.ValueType
    adapters: tuple[WeightedAdapter, ...] = ()
    degraded_reason: str = ""

    @property
    def applied(self) -> tuple[WeightedAdapter, ...]:
        """The adapters that the backend adds to the base."""
        return tuple(adapter for adapter in self.adapters if adapter.digest)


def plan_base() -> Plan:
    """Returns the plan for the bare base model."""
    return Plan(ON_BASE)


def plan_pin(pin: ResolveAdapterResponse, capabilities: Capabilities) -> Plan:
    """Returns the plan for one adapter at weight 1; raises FailedPrecondition (ADAPTER_NOT_LOADED)."""
    return _single(WeightedAdapter(pin.adapter_id, pin.version, 1.0, pin.digest), capabilities, "")


def plan_decision(decision: RouteResponse, capabilities: Capabilities) -> Plan:
    """Returns how a backend serves a decision.

    A weighted set is served exactly where it was measured and the backend can; elsewhere the best single
    adapter replaces it and the plan says so. Raises FailedPrecondition: QUERY_REFUSED if the pool's policy
    refuses the query, ADAPTER_NOT_LOADED if the backend lacks the adapter. Never the base instead.
    """
    if decision.action == ROUTE_ACTION_REFUSE:
        raise FailedPrecondition(
            "QUERY_REFUSED",
            decision.action_reason or "the pool's policy refuses queries unlike its tasks",
            decision_id=decision.decision_id,
        )
    adapters = tuple(WeightedAdapter(a.adapter_id, a.version, a.weight, a.digest) for a in decision.adapters)
    if decision.action == ROUTE_ACTION_BASE or all(not adapter.digest for adapter in adapters):
        return plan_base()
    if len(adapters) == 1 and adapters[0].weight == 1.0:
        return _single(adapters[0], capabilities, "")
    reason = _UNMEASURED
    if decision.measured:
        if capabilities.weighted_sets and all(capabilities.serves(a.digest) for a in adapters if a.digest):
            return Plan(EXACT, adapters)
        reason = _ONE
    best = decision.best_single
    if best.adapter_id == BASE:
        return Plan(ON_BASE, degraded_reason=reason)
    return _single(WeightedAdapter(best.adapter_id, best.version, 1.0, best.digest), capabilities, reason)


def _single(adapter: WeightedAdapter, capabilities: Capabilities, degraded_reason: str) -> Plan:
    if not capabilities.serves(adapter.digest):
        raise FailedPrecondition(
            "ADAPTER_NOT_LOADED",
            f"the backend has not loaded {adapter.adapter_id}@{adapter.version}: load it there, or add a "
            "backend that loads adapters on demand",
            adapter_id=adapter.adapter_id,
        )
    return Plan(SINGLE, (adapter,), degraded_reason)


def served_model(adapters: Sequence[WeightedAdapter], base_model: str) -> str:
    """Returns the name of what served: ``id``, ``id+id2`` with the largest weight first, or the base's id."""
    ordered = sorted(adapters, key=lambda adapter: -adapter.weight)
    return "+".join(adapter.adapter_id for adapter in ordered) or base_model
