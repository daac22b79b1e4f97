"""Whether a replica is given requests: faults eject it, a probe and then one request bring it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

FAULTS = 5
"""Consecutive faults that eject a replica."""

MOST_PAUSE_SECONDS = 5.0
"""Longest pause between probes of a replica that keeps failing."""


class State(StrEnum):
    """What a replica is given."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    HALF_OPEN = "half_open"


class Health:
    """The state of one replica. ``clock`` returns seconds that never go back."""

    def __init__(self, clock: Callable[[], float], probe_seconds: float) -> None:
        self.state = State.HEALTHY
        self.ejected_at = 0.0
        self.ejections = 0
        self.faults = 0
        self._clock = clock
        self._probe_seconds = probe_seconds
        self._pause = probe_seconds
        self._next_probe = 0.0
        self._is_trying = False

    def may_try(self) -> bool:
        """Whether a request may go there now: one at a time while it is half open."""
        return self.state is not State.HALF_OPEN or not self._is_trying

    def begin(self) -> None:
        """Notes that a request goes there."""
        if self.state is State.HALF_OPEN:
            self._is_trying = True

    def end(self) -> None:
        """Notes that a request ended in a way that says nothing about the replica."""
        self._is_trying = False

    def began(self) -> None:
        """Notes an answer that has begun: a half-open replica takes others again, until the next fault."""
        if self.state is State.HALF_OPEN:
            self._is_trying = False
            self.state = State.HEALTHY
            self.faults = FAULTS - 1

    def success(self) -> None:
        """Notes that a request was answered."""
        self._is_trying = False
        self.faults = 0
        self.state = State.HEALTHY
        self._pause = self._probe_seconds

    def fault(self) -> None:
        """Notes a fault of the replica's."""
        self._is_trying = False
        if self.state is State.EJECTED:
            return
        self.faults += 1
        if self.state is State.HALF_OPEN:
            self._pause = min(2 * self._pause, max(MOST_PAUSE_SECONDS, self._probe_seconds))
            self._eject()
        elif self.faults >= FAULTS:
            self._eject()

    def probe_is_due(self) -> bool:
        """Whether to ask now whether it is healthy, which is only asked of an ejected replica."""
        return self.state is State.EJECTED and self._clock() >= self._next_probe

    def probed(self, is_healthy: bool) -> None:
        """Notes what an ejected replica answered when it was asked."""
        if self.state is not State.EJECTED:
            return
        if is_healthy:
            self.state = State.HALF_OPEN
            self._is_trying = False
        else:
            self._next_probe = self._clock() + self._pause

    def _eject(self) -> None:
        self.state = State.EJECTED
        self.ejections += 1
        self.ejected_at = self._clock()
        self._next_probe = self.ejected_at + self._pause


def set_aside(healths: Mapping[str, Health]) -> tuple[set[str], set[str]]:
    """Returns which of a pool's replicas get no request, and which are only tried last.

    Ejected ones get none, but never more than half of the pool, rounded down: of more, those that were
    ejected last are tried after all others.
    """
    ejected = sorted(
        (name for name, health in healths.items() if health.state is State.EJECTED),
        key=lambda name: (healths[name].ejected_at, name),
    )
    most = len(healths) // 2
    return set(ejected[:most]), set(ejected[most:])
