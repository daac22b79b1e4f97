"""Bounds how many generations run, and counts how they end."""

from __future__ import annotations

import asyncio
from time import perf_counter
from types import TracebackType
from typing import Self

from lorauter.errors import Exhausted, LorauterError
from lorauter_gateway import metrics


class Admission:
    """Lets ``limit`` generations run at a time and refuses the rest at once: queues belong to backends."""

    def __init__(self, limit: int) -> None:
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
        self._admission = admission
        self._route = route
        self._is_open = True

    def end(self, error: BaseException | None) -> None:
        """Gives the slot back, once, and counts the outcome."""
        if not self._is_open:
            return
        self._is_open = False
        self._admission.leave()
        metrics.REQUESTS.labels(self._route, _outcome(error)).inc()

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
