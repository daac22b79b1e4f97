"""A child process as the suite and its tests start, await and stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from lorauter.errors import FailedPrecondition
from lorauter_suite.embedded.identity import SAME, Identity, launcher

_PROBE_SECONDS = 0.05
"""Pause between two looks at a process that is not ready yet."""


class PartFailed(FailedPrecondition):
    """A part of the suite could not be brought up; the message says which, why and what to do."""

    def __init__(self, message: str, reason: str = "PART_FAILED") -> None:
        super().__init__(reason, message)


@dataclass(frozen=True)
class ProcessSpec:
    """How one process is started, known to be ready, and stopped."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the child's environment has besides its parent's."""
    identity: Identity = SAME
    death_signal: int = signal.SIGKILL
    """What the kernel sends it when its parent dies."""
    stop_signal: int = signal.SIGTERM
    prepare: Callable[[], None] | None = None
    """Runs before every start, restarts too; may raise PartFailed."""
    probe: Callable[[], bool] | None = None
    """Returns whether it is ready; never raises. None: ready once started."""
    ready_seconds: float = 60.0
    once: bool = False
    """It is ready when it has ended with status 0, and then not started again."""
    folder: str | None = None
    """Working folder; None: the parent's."""


def start(spec: ProcessSpec, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Starts the prepared process in a session of its own, which Ctrl-C of a terminal does not reach.

    The calling thread must live as long as the child shall: the kernel watches the thread.
    """
    return subprocess.Popen(  # noqa: S603
        launcher(spec.identity, spec.death_signal, spec.command),
        env={**os.environ, **spec.environment},
        cwd=spec.folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def await_ready(
    spec: ProcessSpec, process: subprocess.Popen[bytes], cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Waits until the probe agrees or ``cancelled`` does.

    Raises PartFailed if the process ends first or time runs out.
    """
    deadline = time.monotonic() + spec.ready_seconds
    while spec.probe is not None and not cancelled() and not spec.probe():
        if process.poll() is not None:
            raise PartFailed(f"{spec.name} ended with status {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise PartFailed(f"{spec.name} was not ready within {spec.ready_seconds:g} s")
        time.sleep(_PROBE_SECONDS)


def stop(spec: ProcessSpec, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Asks the process to end, kills it after ``seconds``, and leaves nothing of its group behind."""
    if process.poll() is None:
        process.send_signal(spec.stop_signal)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    kill_group(process)
    process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the process and of its children that stayed in its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def running(
    spec: ProcessSpec, output: IO[bytes] | int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the process, waits until it is ready, and stops it at the end of the block."""
    if spec.prepare is not None:
        spec.prepare()
    process = start(spec, output)
    try:
        await_ready(spec, process)
        yield process
    finally:
        stop(spec, process, seconds=10)
