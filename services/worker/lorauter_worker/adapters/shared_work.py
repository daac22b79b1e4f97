"""Work that several threads share: who cannot do his part gives it back for the others."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Generic, TypeVar

from lorauter.errors import Unavailable

Result = TypeVar("Result")


class SharedWork(Generic[Result]):
    """``count`` places to be filled in any order; over when all are, or when it failed."""

    def __init__(self, count: int, patience_seconds: float) -> None:
        """It fails as unavailable when no place was filled for ``patience_seconds``."""
        self._waiting = deque(range(count))
        self._results: dict[int, Result] = {}
        self._count = count
        self._patience = patience_seconds
        self._filled = time.monotonic()
        self._why = ""
        self._given_back: Counter[int] = Counter()
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def is_over(self) -> bool:
        """Tells whether nothing is left to do."""
        return self._error is not None or len(self._results) == self._count

    def take(self) -> int | None:
        """Returns a place to fill, as soon as there is one; None once the work is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.is_over())
            return None if self.is_over() else self._waiting.popleft()

    def put(self, place: int, result: Result) -> None:
        """Fills a place that was taken."""
        with self._changed:
            self._results[place] = result
            self._filled = time.monotonic()
            self._changed.notify_all()

    def give_back(self, place: int, why: str) -> None:
        """Leaves a place that was taken to whoever takes it next."""
        with self._changed:
            self._given_back[place] += 1
            self._why = why
            self._waiting.appendleft(place)
            self._changed.notify()

    def tries(self, place: int) -> int:
        """Returns how often a place that was taken now has been taken."""
        return self._given_back[place] + 1

    def rest(self, seconds: float) -> None:
        """Waits, unless the work is over sooner; fails it when patience ends by then."""
        with self._changed:
            if time.monotonic() + seconds >= self._filled + self._patience:
                self.fail(
                    Unavailable(
                        "BACKEND_UNAVAILABLE", f"no backend answered within {self._patience:g} s, {self._why}"
                    )
                )
            self._changed.wait_for(self.is_over, seconds)

    def fail(self, error: BaseException) -> None:
        """Ends the work for all."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def end(self) -> None:
        """Ends the work for a caller who leaves early, so that no thread goes on for him."""
        self.fail(Unavailable("CALLER_LEFT", "the caller left before the work was over"))

    def result(self) -> list[Result]:
        """Waits until the work is over; returns the results in order, or raises what it failed with."""
        with self._changed:
            self._changed.wait_for(self.is_over)
        if self._error is not None:
            raise self._error
        return [self._results[place] for place in range(self._count)]
