"""Keeps processes alive: starts each when what it needs is ready, and again when it dies."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from lorauter_suite.embedded.process import PartFailed, ProcessSpec, await_ready, kill_group, start
from lorauter_suite.logs import LogFolder

FIRST_DELAY_SECONDS = 0.2
"""Pause before a dead child is started again; it doubles with every death in a row."""
LONGEST_DELAY_SECONDS = 5.0
STABLE_SECONDS = 10.0
"""A child that lived this long starts from the first delay again."""
TRIES = 3
"""Starts that may fail before a child that was never ready fails the whole start-up."""

OnEvent = Callable[[str], None]


class Child:
    """One process and the thread that starts it, waits for it and starts it again.

    The thread lives as long as the supervisor: the kernel ends a child when the thread that started it
    ends. ``ready`` is set while the process is ready, ``was_ready`` since the first time; ``failure`` says
    why the last start failed.
    """

    def __init__(
        self, spec: ProcessSpec, needs: Sequence[Child], logs: LogFolder, changed: Callable[[], None]
    ) -> None:
        self.spec = spec
        self.ready = threading.Event()
        self.failure = ""
        self.starts = 0
        self._needs = needs
        self._logs = logs
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self.was_ready = False
        self._thread = threading.Thread(target=self._run, name=f"child-{spec.name}", daemon=True)

    @property
    def pid(self) -> int | None:
        """The running process, or None."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def begin(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Sends the stop signal; the process is not started again. Does not wait."""
        with self._starting:
            self._stopping.set()
            if self._process is not None:
                with suppress(ProcessLookupError):
                    self._process.send_signal(self.spec.stop_signal)

    def end(self, deadline: float) -> None:
        """Waits until the process is gone, and kills it at the deadline (of time.monotonic)."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive() and self._process is not None:
            kill_group(self._process)
        self._thread.join(5)

    def _run(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while self._await_needs():
            began = time.monotonic()
            if self._live_once() or self._stopping.is_set():
                return
            if not self.was_ready and self.starts >= TRIES:
                return
            self.failure = ""
            if time.monotonic() - began > STABLE_SECONDS:
                delay = FIRST_DELAY_SECONDS
            if self._stopping.wait(delay):
                return
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    def _await_needs(self) -> bool:
        """Returns True once all needs are ready, False if this is to stop before."""
        while not self._stopping.is_set():
            if all(need.ready.wait(0.05) for need in self._needs):
                return True
        return False

    def _live_once(self) -> bool:
        """Runs the process until it ends; returns True if it did what a one-shot process is for."""
        try:
            process = self._start()
        except Exception as error:
            # Whatever it is, the next try may work; a thread that ends here would leave the child dead.
            self._fail(f"{self.spec.name} cannot be started: {error}")
            return False
        if process is None:
            return False
        try:
            if not self.spec.once:
                await_ready(self.spec, process, self._stopping.is_set)
                self._set_ready(not self._stopping.is_set())
            status = process.wait()
        except PartFailed as error:
            self._fail(f"{error}\n{self._log_of_this_start()}".rstrip())
            status = process.poll() or -1
        finally:
            kill_group(process)
            process.wait()
        if self.spec.once and status == 0:
            self._set_ready(True)
            return True
        if self.spec.once:
            self._fail(f"{self.spec.name} failed with status {status}\n{self._log_of_this_start()}".rstrip())
        self._set_ready(False)
        return False

    def _start(self) -> subprocess.Popen[bytes] | None:
        self.starts += 1
        if self.spec.prepare is not None:
            self.spec.prepare()
        with self._starting:
            if self._stopping.is_set():
                return None
            self._log_begin = self._logs.size(self.spec.name)
            with self._logs.path(self.spec.name).open("ab") as log:
                self._process = start(self.spec, log)
        self._changed()
        return self._process

    def _log_of_this_start(self) -> str:
        return self._logs.tail(self.spec.name, self._log_begin)

    def _set_ready(self, ready: bool) -> None:
        self.was_ready = self.was_ready or ready
        if ready:
            self.ready.set()
        else:
            self.ready.clear()
        self._changed()

    def _fail(self, words: str) -> None:
        self.failure = words
        self._changed()


class Supervisor:
    """A set of children. Their order of declaration is the order of start; they stop in reverse."""

    def __init__(self, logs: LogFolder, on_event: OnEvent, on_change: Callable[[], None]) -> None:
        self.children: dict[str, Child] = {}
        self._logs = logs
        self._on_event = on_event
        self._on_change = on_change
        self._wake = threading.Condition()
        self._told: dict[str, tuple[int, bool]] = {}
        self._began = time.monotonic()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_house, name="suite-logs", daemon=True)

    def add(self, spec: ProcessSpec, needs: Iterable[str] = ()) -> None:
        """Declares a process; ``needs`` must be ready before it is started."""
        wanted = [self.children[name] for name in needs if name in self.children]
        self.children[spec.name] = Child(spec, wanted, self._logs, self._note)

    def begin(self, seconds: float) -> None:
        """Starts all and returns when all are ready; raises PartFailed with the end of a log if not."""
        self._began = time.monotonic()
        self._keeper.start()
        for child in self.children.values():
            child.begin()
        with self._wake:
            self._wake.wait_for(self._is_settled, seconds)
        waiting = [name for name, child in self.children.items() if not child.was_ready]
        for name in waiting:
            if self.children[name].failure:
                raise PartFailed(f"{name}: {self.children[name].failure}")
        if waiting:
            raise PartFailed(f"not ready within {seconds:g} s: {', '.join(waiting)}; see {self._logs.folder}")

    def await_ready(self, seconds: float) -> None:
        """Returns when all are ready at once, e.g. again after a kill; raises PartFailed if not in time."""
        with self._wake:
            if not self._wake.wait_for(lambda: not self._unready(), seconds):
                raise PartFailed(f"not ready within {seconds:g} s: {', '.join(self._unready())}")

    def stop(self, groups: Sequence[Sequence[str]], seconds: float) -> None:
        """Stops group after group, each at once; whoever is left ``seconds`` after its signal is killed."""
        self._closing.set()
        for group in groups:
            children = [self.children[name] for name in group if name in self.children]
            for child in children:
                child.ask_to_stop()
            deadline = time.monotonic() + seconds
            for child in children:
                child.end(deadline)

    def _unready(self) -> list[str]:
        return [name for name, child in self.children.items() if not child.ready.is_set()]

    def _is_settled(self) -> bool:
        children = self.children.values()
        return all(child.was_ready for child in children) or any(
            child.failure and child.starts >= TRIES for child in children
        )

    def _note(self) -> None:
        with self._wake:
            for name, child in self.children.items():
                state = (child.starts, child.ready.is_set())
                if state != self._told.get(name, (0, False)) and not self._closing.is_set():
                    self._told[name] = state
                    with suppress(OSError, ValueError):  # nobody reads our output any more
                        self._tell(name, *state)
            with suppress(OSError):  # a full disk must not end a child's thread
                self._on_change()
            self._wake.notify_all()

    def _tell(self, name: str, starts: int, ready: bool) -> None:
        if ready:
            seconds = time.monotonic() - self._began
            self._on_event(f"{name} ready after {seconds:.1f} s" if starts == 1 else f"{name} is back")
        elif starts > 1:
            self._on_event(f"{name} died, start {starts}")

    def _keep_house(self) -> None:
        while not self._closing.wait(5):
            with suppress(OSError):
                self._logs.trim()
