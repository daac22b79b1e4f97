"""All of lorauter on one machine: what `lorauter up` runs, as a context manager."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from lorauter_suite.addresses import Addresses, choose_ports, from_document, to_document, write_private
from lorauter_suite.embedded.process import PartFailed
from lorauter_suite.logs import LogFolder
from lorauter_suite.services import PORTS, STOP_ORDER, TEMPORARY, SuiteOptions, plan
from lorauter_suite.supervisor import Supervisor

__all__ = ["Addresses", "PartFailed", "Suite", "SuiteOptions", "SuiteRunning"]

_STOP_SECONDS = 4.0
"""How long a group of processes may take to stop before it is killed."""

_LOCK_TRIES = 5
"""Suite.find() holds the lock for a moment when no suite runs."""


class SuiteRunning(PartFailed):
    """Another process runs a suite on the same data directory (SUITE_RUNNING)."""


class Suite:
    """The whole suite on a data directory; entering starts it, leaving stops it.

    Children that die are started again on the same ports; all die with this process, however it ends.
    External servers named by DATABASE_URL, REDIS_URL or QDRANT_URL are used instead of embedded ones.
    ``on_event`` gets lines for people. To be entered in the main thread, SIGTERM and SIGHUP then act
    like Ctrl-C. Raises SuiteRunning, or PartFailed with the end of the failing process's log.
    """

    def __init__(
        self,
        data_dir: Path,
        options: SuiteOptions | None = None,
        on_event: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.options = options or SuiteOptions()
        self._on_event = on_event
        self._addresses: Addresses | None = None
        self._supervisor: Supervisor | None = None
        self._lock: IO[str] | None = None
        self._ended = threading.Event()
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def addresses(self) -> Addresses:
        """Where the suite listens; raises RuntimeError before it was started."""
        if self._addresses is None:
            raise RuntimeError("the suite has not been started")
        return self._addresses

    def pids(self) -> dict[str, int]:
        """Returns the running processes by name."""
        children = self._supervisor.children if self._supervisor else {}
        return {name: child.pid for name, child in children.items() if child.pid is not None}

    def await_ready(self, seconds: float = 60.0) -> None:
        """Returns when all processes are ready at once, as after a kill; raises PartFailed if not in time.

        A process that died counts as ready for the moment until its supervisor sees it.
        """
        if self._supervisor is not None:
            self._supervisor.await_ready(seconds)

    def start(self) -> None:
        """Starts everything and returns when all is ready."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.data_dir)
        self._catch_signals()
        try:
            self._start_processes()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Returns when somebody asks the suite to end: Ctrl-C, SIGTERM, or stop() in another thread."""
        with suppress(KeyboardInterrupt):
            self._ended.wait()

    def stop(self) -> None:
        """Stops everything in order: callers first, PostgreSQL last. Idempotent; takes 12 s at most."""
        self._ended.set()
        self._release_signals()
        try:
            if self._supervisor is not None:
                self._supervisor.stop(STOP_ORDER, _STOP_SECONDS)
                self._supervisor = None
        finally:
            if self._lock is not None:
                (self.data_dir / "suite.json").unlink(missing_ok=True)
                self._lock.close()
                self._lock = None

    @staticmethod
    def find(data_dir: Path) -> Addresses | None:
        """Returns the addresses of the suite that runs on this data directory, or None."""
        try:
            with (data_dir / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(OSError):
                return from_document((data_dir / "suite.json").read_text(encoding="utf-8"))
        except OSError:
            pass
        return None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_processes(self) -> None:
        (self.data_dir / "incoming").mkdir(exist_ok=True)
        shutil.rmtree(self.data_dir / TEMPORARY, ignore_errors=True)
        (self.data_dir / TEMPORARY).mkdir(mode=0o700)
        ports = choose_ports(self.data_dir / "ports.json", PORTS, self.options.ports)
        planned = plan(self.data_dir, ports, self.options, os.environ)
        self._addresses = planned.addresses
        self._supervisor = Supervisor(LogFolder(self.data_dir / "logs"), self._on_event, self._publish)
        for spec, needs in planned.processes:
            self._supervisor.add(spec, needs)
        self._supervisor.begin(self.options.start_seconds)

    def _publish(self) -> None:
        if self._lock is not None:
            write_private(self.data_dir / "suite.json", to_document(self.addresses, self.pids()))

    def _catch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGTERM, signal.SIGHUP):
                self._handlers[name] = signal.signal(name, _interrupt)

    def _release_signals(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _take_lock(data_dir: Path) -> IO[str]:
    lock = (data_dir / "lock").open("a+")
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.05)
    lock.close()
    raise SuiteRunning(
        f"a suite already runs on {data_dir} (process {_owner(data_dir)}): "
        "stop it first, or name another data directory",
        reason="SUITE_RUNNING",
    )


def _owner(data_dir: Path) -> str:
    try:
        return str(json.loads((data_dir / "suite.json").read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError):
        return "unknown"
