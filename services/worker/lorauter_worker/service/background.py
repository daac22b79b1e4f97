"""Work beside everything else, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from lorauter.errors import LorauterError
from lorauter.telemetry import get_logger

_log = get_logger(__name__)

_LAST_SECONDS = 5.0
"""How long work that is under way may take when the thread is to end; it must leave nothing half done."""


class Background:
    """Calls ``once`` again and again, ``pause_seconds`` after the last time ended, whatever it raises."""

    def __init__(self, name: str, once: Callable[[], None], pause_seconds: float) -> None:
        self._once = once
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        event = f"worker.{self._thread.name}.failed"
        while not self._stop.is_set():
            try:
                self._once()
            except (SQLAlchemyError, LorauterError) as error:
                _log.warning(event, error=getattr(error, "reason", type(error).__name__))
            except Exception as error:  # the next time may well succeed
                _log.error(event, exc_info=error)
            self._stop.wait(self._pause_seconds)
