"""Ends a worker that takes no work although some waits: whoever started it starts another."""

from __future__ import annotations

import time
from collections.abc import Callable

from lorauter.telemetry import get_logger

_log = get_logger(__name__)

STUCK_SECONDS = 60.0
"""How long work may wait for a worker that does nothing. A wake-up itself expires after 30 s."""


class Watchdog:
    """Watches from the sweep, which goes on when the broker's consumer does not."""

    def __init__(self, is_idle: Callable[[], bool], give_up: Callable[[], None]) -> None:
        """``is_idle``: whether no child works though the broker is there. ``give_up`` ends the process."""
        self._is_idle = is_idle
        self._give_up = give_up
        self._stuck_since: float | None = None

    def look(self, work_waits: bool, now: float | None = None) -> None:
        """Is told at every sweep whether due work has a wake-up in the queue. ``now``: time.monotonic()."""
        now = time.monotonic() if now is None else now
        if not work_waits or not self._is_idle():
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since >= STUCK_SECONDS:
            _log.error("worker.consuming.stuck", seconds=round(now - self._stuck_since))
            self._give_up()
