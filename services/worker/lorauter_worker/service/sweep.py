"""Looks for due work and for a lost marker without any message: losing the broker loses only time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from lorauter.errors import LorauterError, Unavailable
from lorauter.index import SnapshotIndex
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.config import Settings, Topic
from lorauter_worker.ports import Wakeups
from lorauter_worker.service import outbox
from lorauter_worker.service.coordinating import WOKEN
from lorauter_worker.service.decisions import DecisionKeeper
from lorauter_worker.service.gauges import Gauges
from lorauter_worker.service.indexing import marker_is_behind
from lorauter_worker.service.recalls import Recalls
from lorauter_worker.service.watchdog import Watchdog

_log = get_logger(__name__)


class Sweep:
    """A thread that enqueues a wake-up where work is due and none is queued."""

    def __init__(
        self,
        engine: Engine,
        index: SnapshotIndex,
        wakeups: Wakeups,
        waiting: Callable[[str], int],
        settings: Settings,
        decisions: DecisionKeeper | None = None,
        recalls: Recalls | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """``waiting`` returns how many messages are in a queue.

        ``recalls`` reach composites, and ``decisions`` are kept, beside the work. ``watchdog`` is told
        whether work waits.
        """
        self._engine = engine
        self._gauges = Gauges(engine)
        self._index = index
        self._wakeups = wakeups
        self._waiting = waiting
        self._settings = settings
        self._decisions = decisions
        self._recalls = recalls
        self._watchdog = watchdog
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)
        self._last_success = time.monotonic()
        self._next_reconcile = 0.0
        self._is_away = False

    def start(self) -> None:
        """Starts sweeping."""
        self._last_success = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def lacking(self) -> str:
        """Returns an empty text if a sweep succeeded lately, else what is wrong."""
        silent = time.monotonic() - self._last_success
        if silent > 10 * self._settings.sweep_seconds + 10:
            return f"the database did not answer for {silent:.0f} s"
        return ""

    def once(self) -> None:
        """Sweeps once. Raises what the database raises."""
        must_reconcile = "index" in self._settings.queues and self._must_reconcile()
        if "index" in self._settings.queues:
            self._gauges.once()
        work_waits = False
        for topic in self._settings.queues:
            backlog = outbox.backlog(self._engine, topic)
            telemetry.OUTBOX_DEPTH.labels(topic=topic).set(backlog.depth)
            telemetry.OUTBOX_AGE.labels(topic=topic).set(backlog.age_seconds)
            missing = self._missing(topic, backlog.due)
            work_waits |= backlog.due > 0 and not missing
            for _ in range(missing):
                self._wakeups.wake(topic)
        if must_reconcile and not self._waiting("index"):
            self._wakeups.wake("reconcile")
            self._next_reconcile = time.monotonic() + self._settings.reconcile_seconds
        self._last_success = time.monotonic()
        if self._watchdog is not None:
            self._watchdog.look(work_waits)
        if self._recalls is not None:
            self._recalls.once()
        if self._decisions is not None:
            self._decisions.once()

    def _missing(self, topic: Topic, due: int) -> int:
        """Returns how many wake-ups to send: index work is done together, matching's parts one by one."""
        wanted = min(due, 1 if topic == "index" else WOKEN)
        return max(0, wanted - self._waiting(topic)) if due else 0

    def _must_reconcile(self) -> bool:
        is_behind = False
        try:
            is_behind = marker_is_behind(self._engine, self._index)
        except Unavailable:
            self._is_away = True
        else:
            if is_behind or self._is_away:  # the index is back, or a new one: what failed is not to wait
                outbox.hasten(self._engine, "index")
            self._is_away = False
        return is_behind or time.monotonic() >= self._next_reconcile

    def _run(self) -> None:
        while True:
            try:
                self.once()
            except (SQLAlchemyError, LorauterError) as error:
                _log.warning("worker.sweep.failed", error=type(error).__name__)
            except Exception as error:  # the sweep is what recovers everything else
                _log.error("worker.sweep.failed", exc_info=error)
            if self._stop.wait(self._settings.sweep_seconds):
                return
