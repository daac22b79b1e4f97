"""A process in a thread, which can be stopped between any two of its steps: it dies there, or halts."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from lorauter import failpoints

STEP_SECONDS = 60.0
"""How long a process may take from one stop to the next."""


class Crash(BaseException):
    """The process died: no handler of an Exception may see it."""


@dataclass(frozen=True)
class Stop:
    """Where a process dies or halts: before its ``calls``-th call of the index, or at a fail-point."""

    point: str = ""
    calls: int = 0
    dies: bool = True


class Outcome(Enum):
    """What became of a process that was let run."""

    DONE = auto()
    DIED = auto()
    HALTED = auto()


class CountedClient:
    """A client that calls ``end`` before its n-th call from now, once ``left`` is set to n."""

    def __init__(self, client: Any, end: Callable[[], None]) -> None:
        self._client = client
        self._end = end
        self.left = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left:
                self.left -= 1
                if not self.left:
                    self._end()
            return method(*args, **kwargs)

        return call


class Process:
    """Runs one piece of work at a time in a thread, while the caller waits: only one thread ever runs."""

    def __init__(self, client: Any) -> None:
        self.client = CountedClient(client, self._end)
        self.result: Any = None
        self._thread: threading.Thread | None = None
        self._told: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self._go_on = threading.Event()
        self._dies = False

    @property
    def is_halted(self) -> bool:
        """Whether it stands still in the middle of something."""
        return self._thread is not None

    def run(self, work: Callable[[], Any], stop: Stop | None = None) -> Outcome:
        """Does something until it is done, which makes its ``result``, or stopped; raises what it raises."""
        stop = stop or Stop()
        self._dies = stop.dies
        self.client.left = stop.calls
        failpoints.arm(stop.point, self._end)
        self._thread = threading.Thread(target=self._run, args=[work], daemon=True)
        self._thread.start()
        return self._await()

    def resume(self, dies: bool = False) -> Outcome:
        """Lets a halted process go on, or die where it stands."""
        self._dies = dies
        self._go_on.set()
        return self._await()

    def _await(self) -> Outcome:
        try:
            told = self._told.get(timeout=STEP_SECONDS)
        finally:
            self.client.left = 0
            failpoints.arm("", self._end)
        if told is Outcome.HALTED:
            return Outcome.HALTED
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        if isinstance(told, BaseException):
            raise told
        return told

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.result = work()
        except Crash:
            self._told.put(Outcome.DIED)
        except BaseException as error:
            self._told.put(error)
        else:
            self._told.put(Outcome.DONE)

    def _end(self) -> None:
        if not self._dies:
            self._go_on.clear()
            self._told.put(Outcome.HALTED)
            self._go_on.wait()
        if self._dies:
            raise Crash
