"""A conversation keeps what served it, unless the expected gain is worth losing its prefix cache.

A server keeps the keys and values of a conversation's turns for the adapter that computed them. The routed
text of a conversation does not change from turn to turn, but what is known of adapters does, and so does what
a server holds: without this, a conversation would change its adapter for next to nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from lorauter.errors import InvalidArgument
from lorauter.identifiers import BASE
from lorauter.router.v1.router_pb2 import (
    ROUTE_ACTION_ADAPTERS,
    BestSingle,
    ChatMessage,
    RouteRequest,
    RouteResponse,
)
from lorauter.router.v1.router_pb2 import WeightedAdapter as Decided
from lorauter.routing.text import routed_text
from lorauter_gateway.domain.plan import WeightedAdapter

MARGIN = 0.02
"""Share of the best score that a conversation may be expected to lose by keeping what served it."""

MOST_CONVERSATIONS = 10_000
"""Conversations that are remembered, some 300 bytes each."""

KEPT_SECONDS = 3600.0
"""How long after its last turn; by then a server's prefix cache holds other things."""

MOST_RUNNERS_UP = 8

_DECIMALS = 6

Arms = frozenset[tuple[str, int, str, float]]
"""What served: adapter id, version, digest and weight of each; the base is none."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The decision to serve. ``reason`` says what was kept in place of what, empty where nothing was.

    ``key`` is the conversation's, None where there is none.
    """

    decision: RouteResponse
    key: bytes | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Former:
    arms: Arms
    time: float


class Stickiness:
    """What served conversations last, in this process; the least recently used are forgotten first."""

    def __init__(
        self,
        margin: float = MARGIN,
        most: int = MOST_CONVERSATIONS,
        kept_seconds: float = KEPT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._margin = margin
        self._most = most
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._formers: OrderedDict[bytes, _Former] = OrderedDict()

    def choose(self, request: RouteRequest, decision: RouteResponse) -> Choice:
        """Returns the decision, or one for what served the conversation, if it loses at most the margin.

        Only a conversation that goes on, with an assistant's turn in it, keeps anything; and only a single
        adapter or the base that the decision still knows, or the weighted set that it is for.
        """
        key = conversation_key(request, f"{decision.tenant}/{decision.pool}")
        former = self._former(key) if key is not None and _goes_on(request.messages) else None
        if former is None or decision.action != ROUTE_ACTION_ADAPTERS:
            return Choice(decision, key)
        best = decision.best_single
        first = _arms(decision.adapters) if _serves_adapters(decision) else _alone(best)
        singles = {_alone(single): single for single in (*decision.runners_up, best)}
        if former == first or former not in singles:
            return Choice(decision, key)
        kept = singles[former]
        loss = max(_utility(decision) - kept.expected_utility, 0.0)
        if loss > self._margin:
            return Choice(decision, key)
        instead = "the weighted set" if len(first) > 1 else _name(best)
        reason = (
            f"the conversation keeps {_name(kept)}, which is expected to lose {loss:.3f} against {instead}: "
            f"at most {self._margin:g} is not worth its prefix cache"
        )
        return Choice(_for_single(decision, kept, reason), key, reason)

    def served(self, key: bytes | None, adapters: Iterable[WeightedAdapter]) -> None:
        """Remembers what served a conversation's turn; nothing where there is no conversation."""
        if key is None:
            return
        self._formers[key] = _Former(_arms(adapters), self._clock())
        self._formers.move_to_end(key)
        while len(self._formers) > self._most:
            self._formers.popitem(last=False)

    def __len__(self) -> int:
        return len(self._formers)

    def _former(self, key: bytes) -> Arms | None:
        former = self._formers.get(key)
        if former is None or self._clock() - former.time > self._kept_seconds:
            return None
        return former.arms


def conversation_key(request: RouteRequest, pool: str) -> bytes | None:
    """Returns what all turns of a conversation have in common: pool, routed text, and what was asked for.

    Conversations that begin alike have one key, and one prefix. None where the request has no messages, or
    none that are routed.
    """
    if not request.messages:
        return None
    with suppress(InvalidArgument):
        text = routed_text([{"role": each.role, "content": each.content} for each in request.messages])
        asked = RouteRequest(
            pool=pool,
            strategy=request.strategy,
            max_adapters=request.max_adapters,
            tags=sorted(request.tags),
            exclude_tasks=sorted(request.exclude_tasks),
            exclude_adapters=sorted(request.exclude_adapters),
            tenant=request.tenant,
            query=text,
        )
        return hashlib.blake2b(asked.SerializeToString(deterministic=True), digest_size=16).digest()
    return None


def _goes_on(messages: Sequence[ChatMessage]) -> bool:
    return any(message.role == "assistant" for message in messages)


def _serves_adapters(decision: RouteResponse) -> bool:
    """Whether the decision's adapters are served: a weighted set that was not measured is not."""
    return len(decision.adapters) == 1 or decision.measured


def _utility(decision: RouteResponse) -> float:
    """Returns what is expected of what would be served.

    A measured set's is only told in an explanation; it beat the best single adapter, whose figure stands for
    it elsewhere: a conversation that began before its composite was there goes on without.
    """
    served = [each for each in decision.explanation.compositions if each.served]
    if decision.measured and served:
        return max(each.expected_utility for each in served)
    return decision.best_single.expected_utility


def _arms(adapters: Iterable[WeightedAdapter | Decided]) -> Arms:
    return frozenset(
        (each.adapter_id, each.version, each.digest, round(each.weight, _DECIMALS))
        for each in adapters
        if each.digest
    )


def _alone(single: BestSingle) -> Arms:
    if single.adapter_id == BASE or not single.digest:
        return frozenset()
    return frozenset({(single.adapter_id, single.version, single.digest, 1.0)})


def _name(single: BestSingle) -> str:
    return "the base" if not _alone(single) else f"{single.adapter_id}@{single.version}"


def _for_single(decision: RouteResponse, kept: BestSingle, reason: str) -> RouteResponse:
    """Returns the decision with ``kept`` as its best single adapter, and what it replaces next to it."""
    others = [
        single for single in (decision.best_single, *decision.runners_up) if _alone(single) != _alone(kept)
    ]
    changed = RouteResponse()
    changed.CopyFrom(decision)
    changed.best_single.CopyFrom(kept)
    del changed.adapters[:]
    if _alone(kept):
        changed.adapters.add(
            adapter_id=kept.adapter_id, version=kept.version, weight=1.0, digest=kept.digest, rank=kept.rank
        )
    del changed.runners_up[:]
    changed.runners_up.extend(others[:MOST_RUNNERS_UP])
    changed.measured = True
    changed.action_reason = reason
    return changed
