"""Protocol servers as processes of a test's own, and what a test says to them."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import ProcessSpec, start, stop

ROOT = Path(__file__).parents[2]
_READY_SECONDS = 30.0


class Running:
    """A server that runs, and may be killed and started again on its port."""

    def __init__(self, kind: str, options: list[str]) -> None:
        self.kind = kind
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", f"tests.protocol_servers.{kind}", "--port", str(self.port)]
        self._command += options
        self._spec = ProcessSpec(kind, self._command, folder=str(ROOT))
        self._http = httpx.Client(base_url=self.url, timeout=10, trust_env=False)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **changed: object) -> None:
        """Starts it; returns once it listens. Raises RuntimeError with what it said instead."""
        command = [*self._command, *_options(changed)]
        self._spec = ProcessSpec(self.kind, command, folder=str(ROOT))
        self._process = start(self._spec, subprocess.PIPE)
        self.await_ready()

    def await_ready(self) -> None:
        """Waits for its line of JSON."""
        assert self._process
        assert self._process.stdout
        said, deadline = b"", time.monotonic() + _READY_SECONDS
        while not said.endswith(b"\n") or not said.splitlines()[-1].startswith(b"{"):
            readable, _, _ = select.select([self._process.stdout], [], [], deadline - time.monotonic())
            line = self._process.stdout.readline() if readable else b""
            said += line
            if not line:
                raise RuntimeError(f"{self.kind} did not start: {said.decode()[-2000:]}")
        assert json.loads(said.splitlines()[-1])["ready"]

    def kill(self) -> None:
        """Ends it as a crash does."""
        assert self._process
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends it."""
        if self._process is not None:
            stop(self._spec, self._process, seconds=5)
            if self._process.stdout:
                self._process.stdout.close()
        self._http.close()

    def counters(self) -> dict[str, Any]:
        """Returns what it has counted since its start."""
        return dict(self._http.get("/counters").raise_for_status().json())

    def fault(self, **wanted: Any) -> None:
        """Has things go wrong as faults.Fault says; nothing, without any."""
        self._http.post("/faults", json=wanted).raise_for_status()

    def post(self, path: str, body: object) -> httpx.Response:
        """Asks it directly."""
        return self._http.post(path, json=body)

    def get(self, path: str) -> Any:
        """Returns the JSON of a page."""
        return self._http.get(path).raise_for_status().json()


@contextmanager
def running(kind: str, **options: object) -> Iterator[Running]:
    """Runs a server of a kind. ``max_loras=4`` is ``--max-loras 4``; True is an option without a value."""
    server = _started(kind, _options(options))
    try:
        yield server
    finally:
        server.close()


def _started(kind: str, options: list[str]) -> Running:
    for tries_left in (2, 1, 0):
        server = Running(kind, options)
        try:
            server.start()
            return server
        except BaseException as error:
            server.close()
            # another process may have taken the port between its choice and its use
            if "address already in use" not in str(error) or not tries_left:
                raise
    raise AssertionError


def _options(options: Mapping[str, object]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return words
