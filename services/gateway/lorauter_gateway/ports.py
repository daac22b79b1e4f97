"""What the gateway needs from outside: a router, replicas of backends of any kind, shared books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from lorauter.access import Caller
from lorauter.errors import LorauterError
from lorauter.router.v1.router_pb2 import (
    Backend,
    GetSnapshotResponse,
    ResolveAdapterResponse,
    RouteRequest,
    RouteResponse,
)
from lorauter_gateway.domain.model import Answer, Piece, Prompt, Sampling
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.domain.quota import Taken


class Router(Protocol):
    """Decides. Every call raises LorauterError, Unavailable (ROUTER_UNAVAILABLE) if the router is away."""

    async def route(self, request: RouteRequest, timeout_seconds: float) -> RouteResponse:
        """Returns the decision for a query."""
        ...

    async def resolve(
        self, tenant: str, pool: str, adapter: str, timeout_seconds: float
    ) -> ResolveAdapterResponse:
        """Returns the version of a pinned adapter that may be served to a tenant now."""
        ...

    async def adapters(self, tenant: str) -> Sequence[ResolveAdapterResponse]:
        """Returns the adapters that may be served to a tenant now."""
        ...

    def snapshot(self) -> GetSnapshotResponse | None:
        """Returns all tenants' pools and backends as last seen, or None before the first time."""
        ...

    def is_reachable(self) -> bool:
        """Whether the router answered last time it was asked for its snapshot."""
        ...

    def trouble(self) -> str:
        """Returns what kept it from answering then, empty if nothing did."""
        ...

    async def refresh(self) -> GetSnapshotResponse:
        """Returns all tenants' pools and backends as they are now."""
        ...


class Takes(StrEnum):
    """How a kind of backend comes to serve adapters."""

    SETS = "sets"
    """Any weighted set of stored adapters, composed at every layer."""
    LOADS = "loads"
    """One adapter or composite a request, loaded at run time into so many slots."""
    LISTED = "listed"
    """One adapter or composite a request, of those that it was started with."""


@dataclass(frozen=True, slots=True)
class BackendCall:
    """What is asked of a replica.

    A kind that takes sets adds ``adapters`` to the base with their weights; the others answer under
    ``served_name``, what they call the one adapter or composite, empty for the base.
    """

    prompt: Prompt
    sampling: Sampling
    adapters: Sequence[WeightedAdapter]
    served_name: str
    base_model: str


class BackendFailed(Exception):
    """The backend, not the caller, is at fault.

    ``error`` is what the caller gets; ``try_elsewhere``: another replica may do better. ``is_fault``: it
    counts against the replica's health. ``retry_after_seconds``: the replica is full and says when to come
    again. ``is_missing``: it does not know the adapter by the name that it was asked for. ``is_noted``: it
    was counted already, for several requests may wait for what failed.
    """

    def __init__(
        self,
        error: LorauterError,
        *,
        try_elsewhere: bool = False,
        is_fault: bool = False,
        retry_after_seconds: float | None = None,
        is_missing: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.try_elsewhere = try_elsewhere
        self.is_fault = is_fault
        self.retry_after_seconds = retry_after_seconds
        self.is_missing = is_missing
        self.is_noted = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a replica: of tokens, of answers to choose from, of requests at a time; 0: not told."""

    max_input_tokens: int = 0
    max_total_tokens: int = 0
    max_best_of: int = 0
    max_concurrent_requests: int = 0


class PieceStream(Protocol):
    """A running answer. Whoever holds it must aclose() it, which stops the generation at once."""

    def __aiter__(self) -> PieceStream: ...

    async def __anext__(self) -> Piece: ...

    async def aclose(self) -> None: ...


class Driver(Protocol):
    """A client of one replica. A kind is a file in adapters/ and a line in adapters/kinds.py."""

    async def generate(self, call: BackendCall) -> Answer:
        """Returns the whole answer.

        Raises BackendFailed, or the LorauterError of a request that no backend, or none of this kind, would
        serve. Cancelling closes the connection, which stops the generation.
        """
        ...

    async def stream(self, call: BackendCall) -> PieceStream:
        """Returns once the first piece is there. Raises as generate does, then and while iterating."""
        ...

    async def is_healthy(self) -> bool:
        """Whether the server says that it can work. Never raises."""
        ...

    def was_cut(self) -> bool:
        """Whether the server's process ended since the last call, even if another one answers already.

        Known of processes that is_healthy() has seen.
        """
        ...

    async def limits(self) -> Limits:
        """Returns its limits; raises BackendFailed."""
        ...

    async def read(
        self, text: str, adapters: Sequence[WeightedAdapter], served_name: str, base_model: str
    ) -> Sequence[float]:
        """Returns the log-probability (nats) of each of ``text``'s tokens but the first, as read by what
        BackendCall would be answered by. Raises BackendFailed."""
        ...


class LoadingDriver(Driver, Protocol):
    """A client of a replica that loads adapters at run time."""

    async def loaded(self) -> Mapping[str, str]:
        """Returns what is loaded, the base aside: paths by name. Raises BackendFailed."""
        ...

    async def load(self, name: str, path: str) -> None:
        """Loads a folder under a name; what is loaded already under that name is no error.

        Raises BackendFailed.
        """
        ...

    async def unload(self, name: str) -> None:
        """Forgets a name; what is not loaded is no error. Raises BackendFailed."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica of a backend, as it is registered.

    ``replica`` names it among all replicas. ``max_rank`` 0 is any rank. ``max_concurrent_requests`` 0: not
    registered. ``is_one_of_several``: the backend's URL may stand for several replicas.
    """

    replica: str
    backend_id: str
    kind: str
    url: str
    takes: Takes
    driver: Driver
    max_rank: int = 0
    slots: int = 1
    adapters_path: str = ""
    shards: int = 1
    max_concurrent_requests: int = 0
    draining: bool = False
    is_one_of_several: bool = False


class Fleet(Protocol):
    """Turns registered backends into clients of their replicas."""

    def speaks(self, kind: str) -> bool:
        """Whether this gateway knows the kind."""
        ...

    async def endpoints(self, tenant: str, backend: Backend) -> Sequence[Endpoint]:
        """Returns the replicas that a backend's URL stands for now; those of before where its name does not
        resolve."""
        ...


class BooksAway(Exception):
    """The shared books cannot be read or written now."""


class Grant(StrEnum):
    """What the books say to a gateway that wants to use an adapter on a replica."""

    READY = "ready"
    """It is there."""
    WAIT = "wait"
    """Another one is loading or evicting it: ask again."""
    LOAD = "load"
    """The caller is to load it, after unloading the victims."""
    FULL = "full"
    """All slots are in use."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A grant at the books' time ``at``; ``victims`` are to be unloaded before loading."""

    grant: Grant
    at: int
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a replica's own list and the books come to.

    ``ready`` is there by both. ``adopt``: the caller is to check it and to call loaded() or failed().
    ``unload``: the caller is to unload it and to call evicted().
    """

    ready: frozenset[str]
    adopt: tuple[str, ...]
    unload: tuple[str, ...]


class Books(Protocol):
    """What all gateways together hold on replicas that load adapters. Every call raises BooksAway.

    A gateway's use of an adapter is a lease that runs out unless it is renewed.
    """

    lease_seconds: float
    load_seconds: float

    async def acquire(self, replica: str, name: str, slots: int) -> Granted:
        """Asks for the use of an adapter; unless FULL, this gateway then has a lease on it."""
        ...

    async def loaded(self, replica: str, name: str) -> int:
        """Says that what was granted to LOAD is there.

        Returns the books' time, or 0 where another gateway has taken it over.
        """
        ...

    async def failed(self, replica: str, name: str, is_gone: bool, victims: Sequence[str]) -> None:
        """Says that it is not: ``is_gone``: surely not loaded; ``victims``: not surely unloaded."""
        ...

    async def evicted(self, replica: str, name: str) -> None:
        """Says that a victim is unloaded."""
        ...

    async def forget(self, replica: str, name: str, known_at: int) -> None:
        """Says that the replica does not know what was there at ``known_at``, and gives the lease back."""
        ...

    async def release(self, replica: str, name: str) -> None:
        """Gives this gateway's lease back."""
        ...

    async def renew(self, replica: str, names: Sequence[str]) -> None:
        """Keeps this gateway's leases."""
        ...

    async def now(self) -> int:
        """Returns the books' time in milliseconds."""
        ...

    async def reconcile(self, replica: str, listed: Sequence[str], since: int, slots: int) -> Reconciled:
        """Corrects the books by a list that the replica gave after the time ``since``."""
        ...


class QuotaBooks(Protocol):
    """What keys have used of their limits, for all gateways together. Every call raises BooksAway."""

    async def take(self, caller: Caller, tokens: int) -> Taken:
        """Takes one request and ``tokens`` of what the caller's key may use, or nothing."""
        ...

    async def correct(self, caller: Caller, requests: int, tokens: int) -> None:
        """Adds to what the key has used; negative numbers give back."""
        ...


@dataclass(frozen=True, slots=True)
class Composite:
    """A composition in the adapter store, written for a kind of backend."""

    name: str
    rank: int


class Composites(Protocol):
    """Compositions that are written on demand."""

    async def find(
        self, tenant: str, pool: str, endpoint: Endpoint, adapters: Sequence[WeightedAdapter]
    ) -> Composite:
        """Returns the composite of a weighted set of a tenant's pool.

        Where it is not written, asks for it and raises Skipped (NOT_WRITTEN). Raises BooksAway.
        """
        ...
