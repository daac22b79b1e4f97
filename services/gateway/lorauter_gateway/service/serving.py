"""What serves a request, and its running answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lorauter.errors import DeadlineExceeded
from lorauter.router.v1.router_pb2 import RouteResponse
from lorauter_gateway.domain.model import Piece
from lorauter_gateway.domain.plan import Plan, served_model
from lorauter_gateway.ports import BackendFailed, Endpoint, PieceStream
from lorauter_gateway.service.admission import Slot
from lorauter_gateway.service.replica import Visit


@dataclass(frozen=True, slots=True)
class Serving:
    """What really serves a request. ``decision`` is None where the caller chose.

    ``kept`` says what the conversation keeps in place of what was decided, empty where nothing.
    ``is_foreign``: the pool is another tenant's than the caller's, who is not told addresses. ``quota`` are
    the headers that say what the caller's key has left.
    """

    decision: RouteResponse | None
    plan: Plan
    endpoint: Endpoint
    base_model: str
    kept: str = ""
    is_foreign: bool = False
    quota: Mapping[str, str] = field(default_factory=dict)

    @property
    def backend_id(self) -> str:
        """The backend's id."""
        return self.endpoint.backend_id

    @property
    def backend_kind(self) -> str:
        """What the backend speaks."""
        return self.endpoint.kind

    @property
    def replica(self) -> str:
        """The address of the replica."""
        return self.endpoint.url

    @property
    def shown_replica(self) -> str:
        """The address of the replica as far as the caller may know it."""
        return "" if self.is_foreign else self.endpoint.url

    @property
    def is_one_of_several(self) -> bool:
        """Whether the backend may have other replicas."""
        return self.endpoint.is_one_of_several

    @property
    def model(self) -> str:
        """The name of what serves."""
        return served_model(self.plan.adapters, self.base_model)


class OpenStream:
    """A running answer, its first piece already there. Iterate it inside aclosing()."""

    def __init__(
        self, serving: Serving, pieces: PieceStream, deadline: float, slot: Slot, visit: Visit
    ) -> None:
        self.serving = serving
        self._pieces = pieces
        self._deadline = deadline
        self._slot = slot
        self._visit = visit

    @property
    def deadline(self) -> float:
        """The running loop's time when it must be over."""
        return self._deadline

    def __aiter__(self) -> OpenStream:
        return self

    async def __anext__(self) -> Piece:
        """Returns the next piece; raises LorauterError, DeadlineExceeded when the time is up."""
        try:
            async with within(self._deadline):
                piece = await anext(self._pieces)
        except StopAsyncIteration:
            raise
        except BackendFailed as failure:
            self._visit.failed(failure)
            self._end(failure.error)
            raise failure.error from None
        except BaseException as error:
            self._end(error)
            raise
        self._slot.pieces += 1
        if piece.finish is not None:
            self._slot.used = piece.finish.usage
            self._visit.succeeded(piece.finish)
            self._end(None)
        return piece

    async def aclose(self) -> None:
        """Stops the generation if it still runs, and makes room for another one."""
        try:
            await self._pieces.aclose()
        finally:
            self._end(asyncio.CancelledError())

    def _end(self, error: BaseException | None) -> None:
        self._visit.close()
        self._slot.end(error)


def deadline_in(timeout_seconds: float) -> float:
    """Returns the running loop's time in so many seconds."""
    return asyncio.get_running_loop().time() + timeout_seconds


@asynccontextmanager
async def within(deadline: float) -> AsyncIterator[None]:
    """Cancels the block at ``deadline`` and raises DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded(
            "DEADLINE_EXCEEDED",
            "the answer was not complete in time: ask for fewer tokens or allow more time",
        ) from None
