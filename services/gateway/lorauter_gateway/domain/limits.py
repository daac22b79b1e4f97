"""How many requests a replica is given at a time, and how many may be tried again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

LEAST_SUCCESSES = 8
"""A lowered limit grows by one per so many answers, or per as many as it allows at a time if that is more."""

LEAST_RETRIES = 10
MOST_RETRIES = 0.2
WINDOW_SECONDS = 10.0


class InFlight:
    """Requests under way on a replica, and how many it takes: ``most``, or fewer once it has refused."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self.limit = most
        self._most = most
        self._successes = 0

    def allow(self, most: int) -> None:
        """Sets how many it takes at most; a limit that was lowered by refusals stays."""
        self.limit = most if self.limit == self._most else min(self.limit, most)
        self._most = most

    def has_room(self) -> bool:
        """Whether one more fits."""
        return self.count < self.limit

    def enter(self) -> None:
        """Notes a request that goes there."""
        self.count += 1

    def leave(self) -> None:
        """Notes one that ended."""
        self.count -= 1

    def refused(self) -> None:
        """Notes that the replica refused a request, still counted, for being full: it takes what it has."""
        self.limit = max(1, min(self.limit, self.count - 1))
        self._successes = 0

    def succeeded(self) -> None:
        """Notes an answer."""
        if self.limit >= self._most:
            return
        self._successes += 1
        if self._successes >= max(LEAST_SUCCESSES, self.limit):
            self._successes = 0
            self.limit += 1


class RetryBudget:
    """Bounds second tries to a share of a pool's requests, so that trouble is not multiplied.

    Of the last WINDOW_SECONDS, at least LEAST_RETRIES and at most MOST_RETRIES of the requests.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()  # [second, requests, retries]
        self._requests = self._retries = 0

    def note_request(self) -> None:
        """Notes a request."""
        self._now()[1] += 1
        self._requests += 1

    def take(self) -> bool:
        """Takes one second try; returns False where none is left."""
        now = self._now()
        if self._retries >= max(LEAST_RETRIES, MOST_RETRIES * self._requests):
            return False
        now[2] += 1
        self._retries += 1
        return True

    def _now(self) -> list[int]:
        second = int(self._clock())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
            while self._seconds[0][0] <= second - WINDOW_SECONDS:
                _, requests, retries = self._seconds.popleft()
                self._requests -= requests
                self._retries -= retries
        return self._seconds[-1]
