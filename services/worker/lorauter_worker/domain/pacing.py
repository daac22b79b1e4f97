"""How fast a process may ask backends that also serve."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST_SECONDS = 1.0
"""A batch is at most what the rate allows in this time, so that waiting for it stays short."""


class Pace:
    """At most ``rate`` evaluations a second over all batches; 0 sets no limit."""

    def __init__(
        self,
        rate: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._now = now
        self._sleep = sleep
        self._free_at = 0.0

    def most(self, wanted: int) -> int:
        """Returns how many of the wanted evaluations one batch may hold: at least one."""
        if not self._rate:
            return wanted
        return max(1, min(wanted, int(self._rate * BURST_SECONDS)))

    def wait(self) -> None:
        """Returns when the batches so far are paid for."""
        if (left := self._free_at - self._now()) > 0:
            self._sleep(left)

    def sent(self, count: int) -> None:
        """Notes a batch of ``count`` evaluations that is being sent."""
        if self._rate:
            self._free_at = max(self._free_at, self._now()) + count / self._rate
