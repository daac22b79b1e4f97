"""What the gateway needs from outside: a router, replicas of backends of any kind, shared books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from lorauter.errors import LorauterError
from lorauter.router.v1.router_pb2 import (
    GetSnapshotResponse,
    ResolveAdapterResponse,
    RouteRequest,
    RouteResponse,
)
from lorauter_gateway.domain.model import Answer, Piece, Prompt, Sampling
from lorauter_gateway.domain.plan import WeightedAdapter


class Router(Protocol):
    """Decides. Every call raises LorauterError, Unavailable (ROUTER_UNAVAILABLE) if the router is away."""

    async def route(self, request: RouteRequest, timeout_seconds: float) -> RouteResponse:
        """Returns the decision for a query."""
        ...

    async def resolve(self, pool: str, adapter: str, timeout_seconds: float) -> ResolveAdapterResponse:
        """Returns the version of a pinned adapter that may be served now."""
        ...

    async def adapters(self) -> Sequence[ResolveAdapterResponse]:
        """Returns the adapters that may be served now."""
        ...

    def snapshot(self) -> GetSnapshotResponse | None:
        """Returns the pools and backends as they were last seen, or None before the first time."""
        ...

    def is_reachable(self) -> bool:
        """Whether the router answered last time it was asked for its snapshot."""
        ...

    async def refresh(self) -> GetSnapshotResponse:
        """Returns the pools and backends as they are now."""
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

    ``error`` is what the caller gets; ``try_elsewhere``: another replica may do better. ``is_fault``: it counts
    against the replica's health. ``retry_after_seconds``: the replica is full and says when to come again.
    ``is_missing``: it does not know the adapter by the name that it was asked for.
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


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a replica: of tokens, of answers to choose from, of requests at a time; 0: it does not say."""

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
