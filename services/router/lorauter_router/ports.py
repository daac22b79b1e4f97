"""What the service needs from outside: snapshots, vectors of queries, candidates, a log of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorauter.routing.bm25 import Terms
from lorauter.routing.compiled import CompiledPool
from lorauter.routing.decision import Decision, RouteOptions
from lorauter.routing.model import Vector
from lorauter.routing.strategies.strategy import Query
from lorauter_router.domain import ServedSnapshot
from lorauter_router.visibility import Snapshots


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A query's unit vector (d,), read-only, and whether the cache held it."""

    vector: Vector
    cached: bool


class QueryEncoder(Protocol):
    """Maps queries to vectors."""

    async def encode(self, texts: Sequence[str], tenant: str) -> list[Encoded]:
        """Returns one result per text of a tenant's callers, in order.

        What is remembered of one tenant's texts does not show in another's results. Raises Exhausted
        (ENCODER_BUSY) when too many wait.
        """
        ...


class SnapshotSource(Protocol):
    """Follows the index."""

    def current(self) -> Snapshots:
        """Returns what is served now."""
        ...

    async def reached(self, generations: Mapping[str, int], timeout_seconds: float) -> None:
        """Returns once these generations, by tenant, or later ones are served, or when the time is up."""
        ...


class Narrower(Protocol):
    """Finds candidates in pools that are too large to score every task."""

    def applies(self, pool: CompiledPool) -> bool:
        """Returns whether a pool is that large."""
        ...

    async def candidates(
        self, snapshot: ServedSnapshot, pool: CompiledPool, query: Query, options: RouteOptions
    ) -> CompiledPool | None:
        """Returns the pool with the query's candidates alone.

        None where the index cannot say in time, or not of this very snapshot; then all are to be scored.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A decision that was made, and what on: ``time_ms`` is Unix time; ``terms`` are those of ``text``.

    ``tenant`` asked, in a pool of ``pool_tenant``. ``terms`` are None where the log keeps no features.
    """

    tenant: str
    decision_id: str
    time_ms: int
    pool_tenant: str
    pool: CompiledPool
    decision: Decision
    options: RouteOptions
    generation: str
    encoder_digest: str
    stale: bool
    text: str
    vector: Vector
    terms: Terms | None


class DecisionLog(Protocol):
    """Records decisions for people and for replays, each with those of the tenant that asked."""

    keeps_features: bool
    """Whether it records what a replay needs."""

    def record(self, made: Made) -> None:
        """Takes note of a decision; returns at once and never raises, whether it can be recorded or not."""
        ...
