"""From a decision to what may answer it, best first, and to what is asked of a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from lorauter.errors import FailedPrecondition
from lorauter.gateway.v1.gateway_pb2 import Composition
from lorauter.identifiers import BASE
from lorauter.router.v1.router_pb2 import (
    ROUTE_ACTION_BASE,
    ROUTE_ACTION_REFUSE,
    BestSingle,
    ResolveAdapterResponse,
    RouteResponse,
)

EXACT = Composition.COMPOSITION_EXACT
COMPOSITE = Composition.COMPOSITION_COMPOSITE
SINGLE = Composition.COMPOSITION_SINGLE
ON_BASE = Composition.COMPOSITION_BASE

_WEIGHT_DECIMALS = 6
_UNMEASURED = (
    "the weighted set was not measured to beat the best single adapter, so that one replaces the weighted set"
)


class Why(StrEnum):
    """Why an answer is not of the decision as it is, for metrics."""

    UNMEASURED = "unmeasured"
    TRIMMED = "trimmed"
    RANK = "rank"
    NOT_LISTED = "not_listed"
    NOT_WRITTEN = "not_written"
    NOT_RESIDENT = "not_resident"
    ABSENT = "absent"
    QUARANTINED = "quarantined"
    NO_SLOT = "no_slot"
    BOOKS_AWAY = "books_away"
    FULL = "full"
    FAILED = "failed"
    NO_BACKEND = "no_backend"


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """A share of the answer. ``digest`` is empty for the base, which adds nothing to itself; ``rank`` is 0
    for it, and where it is not known."""

    adapter_id: str
    version: int
    weight: float
    digest: str
    rank: int = 0


Members = tuple[tuple[str, float], ...]
"""What a set adds to the base: digests and weights of 6 decimals, in the order of digests."""


@dataclass(frozen=True, slots=True)
class Option:
    """What may answer: one adapter at weight 1, a weighted set, or without adapters the base."""

    adapters: tuple[WeightedAdapter, ...] = ()
    why: Why | None = None
    degraded_reason: str = ""

    @property
    def applied(self) -> tuple[WeightedAdapter, ...]:
        """The adapters that are added to the base."""
        return tuple(adapter for adapter in self.adapters if adapter.digest)

    @property
    def is_base(self) -> bool:
        """Whether the bare base answers."""
        return not any(adapter.digest for adapter in self.adapters)

    @property
    def is_single(self) -> bool:
        """Whether one adapter answers at full weight."""
        return len(self.adapters) == 1 and self.adapters[0].weight == 1.0 and not self.is_base

    @property
    def members(self) -> Members:
        """What it adds to the base."""
        return members_of((adapter.digest, adapter.weight) for adapter in self.applied)

    @property
    def name(self) -> str:
        """What people may call it."""
        if self.is_base:
            return "the base"
        if self.is_single:
            return f"{self.adapters[0].adapter_id}@{self.adapters[0].version}"
        return "the weighted set"


@dataclass(frozen=True, slots=True)
class Wish:
    """The options of a request, best first. ``keeps_decision``: what differs from the first is refused.

    The ``others`` are made when they are asked for, which they seldom are.
    """

    first: Option
    others: Callable[[], Iterable[Option]] = tuple
    keeps_decision: bool = False

    def __iter__(self) -> Iterator[Option]:
        yield self.first
        yield from self.others()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a replica. ``degraded_reason`` says why it differs from the decision, if it does.

    ``served_name`` is what the replica calls the one adapter or composite that answers.
    """

    composition: Composition.ValueType
    adapters: tuple[WeightedAdapter, ...] = ()
    degraded_reason: str = ""
    served_name: str = ""
    why: Why | None = None

    @property
    def applied(self) -> tuple[WeightedAdapter, ...]:
        """The adapters that the backend adds to the base."""
        return tuple(adapter for adapter in self.adapters if adapter.digest)


class Skipped(Exception):
    """An option is not served by a replica, or not now."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why
        self.message = message


def members_of(weighted: Iterable[tuple[str, float]]) -> Members:
    """Returns digests with their weights in a form that can be compared."""
    return tuple(sorted((digest, round(weight, _WEIGHT_DECIMALS)) for digest, weight in weighted))


def wish_base() -> Wish:
    """Returns the wish for the bare base model."""
    return Wish(Option())


def wish_pin(pin: ResolveAdapterResponse) -> Wish:
    """Returns the wish for one adapter at weight 1, and nothing else."""
    adapter = WeightedAdapter(pin.adapter_id, pin.version, 1.0, pin.digest, pin.rank)
    return Wish(Option((adapter,)), keeps_decision=True)


def wish_decision(decision: RouteResponse, refuse_degraded: bool) -> Wish:
    """Returns what may answer a decision.

    A weighted set comes first where it was measured, the best single adapter elsewhere, then the runners-up,
    at last the base. Raises FailedPrecondition (QUERY_REFUSED) if the pool's policy refuses the query.
    """
    if decision.action == ROUTE_ACTION_REFUSE:
        raise FailedPrecondition(
            "QUERY_REFUSED",
            decision.action_reason or "the pool's policy refuses queries unlike its tasks",
            decision_id=decision.decision_id,
        )
    decided = Option(
        tuple(WeightedAdapter(a.adapter_id, a.version, a.weight, a.digest, a.rank) for a in decision.adapters)
    )
    if decision.action == ROUTE_ACTION_BASE or decided.is_base:
        return wish_base()
    if decided.is_single or decision.measured:
        first = decided
    else:
        first = Option(_alone(decision.best_single), Why.UNMEASURED, _UNMEASURED)
    if refuse_degraded:
        return Wish(first, keeps_decision=True)
    return Wish(first, partial(_others, first, decision))


def _others(first: Option, decision: RouteResponse) -> Iterator[Option]:
    seen = {first.adapters}
    for single in (decision.best_single, *decision.runners_up, BestSingle(adapter_id=BASE)):
        adapters = _alone(single)
        if adapters not in seen:
            seen.add(adapters)
            yield Option(adapters)


def _alone(single: BestSingle) -> tuple[WeightedAdapter, ...]:
    if single.adapter_id == BASE or not single.digest:
        return ()
    return (WeightedAdapter(single.adapter_id, single.version, 1.0, single.digest, single.rank),)


def fitted(option: Option, max_rank: int) -> Option:
    """Returns the option with ranks that sum to ``max_rank`` at most; 0 bounds nothing.

    The smallest weights go, the rest is scaled to sum to 1 and says so. Raises Skipped where one adapter
    alone exceeds it.
    """
    if not max_rank or option.is_base or _ranks(option.adapters) <= max_rank:
        return option
    kept = sorted(option.adapters, key=lambda adapter: (-adapter.weight, adapter.adapter_id))
    lost: list[WeightedAdapter] = []
    while _ranks(kept) > max_rank:
        smallest = next(adapter for adapter in reversed(kept) if adapter.rank)
        if not any(adapter.digest for adapter in kept if adapter is not smallest):
            message = f"{smallest.adapter_id} is of rank {smallest.rank}; the backend takes {max_rank}"
            raise Skipped(Why.RANK, message)
        kept.remove(smallest)
        lost.append(smallest)
    total = sum(adapter.weight for adapter in kept)
    left = tuple(
        replace(adapter, weight=adapter.weight / total) for adapter in option.adapters if adapter in kept
    )
    names = ", ".join(f"{adapter.adapter_id} ({adapter.weight:.3f})" for adapter in lost)
    reason = (
        f"the ranks of the weighted set sum to {_ranks(option.adapters)} and the backend takes {max_rank}: "
        f"without {names}"
    )
    return Option(left, Why.TRIMMED, _joined(option.degraded_reason, reason))


def _ranks(adapters: Iterable[WeightedAdapter]) -> int:
    return sum(adapter.rank for adapter in adapters)


def plan_set(option: Option) -> Plan:
    """Returns the plan for a replica that takes any weighted set."""
    composition = ON_BASE if option.is_base else SINGLE if option.is_single else EXACT
    return Plan(composition, option.adapters, option.degraded_reason, why=option.why)


def plan_named(option: Option, name: str) -> Plan:
    """Returns the plan for a replica that holds the option under one name."""
    composition = SINGLE if option.is_single else COMPOSITE
    return Plan(composition, option.adapters, option.degraded_reason, name, option.why)


def instead(plan: Plan, first: Option, skipped: Skipped) -> Plan:
    """Returns the plan with the reason why it replaces ``first``, which was skipped."""
    now = Option(plan.adapters).name
    reason = f"{first.name} is not served: {skipped.message}; {now} replaces it"
    return replace(plan, why=first.why or skipped.why, degraded_reason=_joined(first.degraded_reason, reason))


def _joined(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason)


def not_servable(wish: Wish, skipped: Skipped | None) -> FailedPrecondition:
    """Returns the error where no replica serves any option."""
    first = wish.first
    why = skipped.message if skipped else "no backend of the pool serves it"
    if first.is_single:
        adapter = first.adapters[0]
        return FailedPrecondition(
            "ADAPTER_NOT_LOADED",
            f"no backend serves {adapter.adapter_id}@{adapter.version} now: {why}. Load it there, or add a "
            "backend that loads adapters on demand",
            adapter_id=adapter.adapter_id,
        )
    return FailedPrecondition(
        "COMPOSITION_NOT_SERVABLE",
        f"no backend serves {first.name} as it was decided: {why}. Add a backend that composes, compose on "
        "demand, or let the pool's policy degrade",
    )


def served_model(adapters: Sequence[WeightedAdapter], base_model: str) -> str:
    """Returns the name of what served: ``id``, ``id+id2`` with the largest weight first, or the base's id."""
    ordered = sorted(adapters, key=lambda adapter: -adapter.weight)
    return "+".join(adapter.adapter_id for adapter in ordered) or base_model
