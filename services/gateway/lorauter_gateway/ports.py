"""What the gateway needs from outside: a router, and backends of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lorauter.errors import LorauterError
from lorauter.router.v1.router_pb2 import (
    GetSnapshotResponse,
    PoolSnapshot,
    ResolveAdapterResponse,
    RouteRequest,
    RouteResponse,
)
from lorauter_gateway.domain.model import Answer, Piece, Prompt, Sampling
from lorauter_gateway.domain.plan import Capabilities, WeightedAdapter


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


@dataclass(frozen=True, slots=True)
class BackendCall:
    """What is asked of a backend: ``adapters`` are added to the base with their weights."""

    prompt: Prompt
    sampling: Sampling
    adapters: Sequence[WeightedAdapter]
    base_model: str


class BackendFailed(Exception):
    """The backend, not the caller, is at fault.

    ``error`` is what the caller gets, ``try_elsewhere`` says whether another backend may do better,
    ``is_down`` whether this one should be tried last until it is healthy again.
    """

    def __init__(self, error: LorauterError, *, try_elsewhere: bool = False, is_down: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.try_elsewhere = try_elsewhere
        self.is_down = is_down


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a backend, of tokens and of answers to choose from; 0 where it does not say."""

    max_input_tokens: int
    max_total_tokens: int
    max_best_of: int


class PieceStream(Protocol):
    """A running answer. Whoever holds it must aclose() it, which stops the generation at once."""

    def __aiter__(self) -> PieceStream: ...

    async def __anext__(self) -> Piece: ...

    async def aclose(self) -> None: ...


class Backend(Protocol):
    """An inference server. A kind is one file in adapters/ and one line in adapters/fleet.py."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can serve."""
        ...

    async def generate(self, call: BackendCall) -> Answer:
        """Returns the whole answer.

        Raises BackendFailed, or the LorauterError of a request that no backend would serve.
        Cancelling closes the connection, which stops the generation.
        """
        ...

    async def stream(self, call: BackendCall) -> PieceStream:
        """Returns once the first piece is there. Raises as generate does, then and while iterating."""
        ...

    async def is_healthy(self) -> bool:
        """Whether the server says that it can work."""
        ...

    async def limits(self) -> Limits:
        """Returns its limits; raises BackendFailed."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that may serve a request now."""

    backend_id: str
    kind: str
    backend: Backend


class Fleet(Protocol):
    """The backends of all pools."""

    def candidates(self, pool: PoolSnapshot) -> list[Candidate]:
        """Returns the pool's active backends in the order to try them.

        Raises Unavailable: NO_BACKEND if there is none, BACKEND_KIND_UNKNOWN if none is of a known kind.
        """
        ...

    def report_down(self, backend_id: str) -> None:
        """Notes that a backend is down; it is tried last until it is healthy again."""
        ...
