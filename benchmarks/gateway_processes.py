"""The processes of the gateway's benchmark, and what they use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway_load import Target

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """A child that listens on ``port``."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """Returns the processor time that it has used."""
        parts = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / _TICKS

    def rss_mb(self) -> float:
        """Returns the memory that it holds, in 10^6 bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True, slots=True)
class Stack:
    """What requests go through, and the ways there."""

    stub: Process
    router: Process
    gateway: Process
    to_stub: Target
    to_gateway: Target
    to_proxy: Target

    def processes(self) -> Mapping[str, Process]:
        """Returns those on the way of a routed request by name."""
        return {"gateway": self.gateway, "router": self.router, "stub": self.stub}


@contextmanager
def peers(seed: int) -> Iterator[tuple[Process, Process, Process]]:
    """Starts a stub, the router that knows it as a backend, and a plain proxy before it."""
    with (
        _started("benchmarks.gateway_stub", [], "port", {}) as stub,
        _started("benchmarks.gateway_router", [stub.port, seed], "grpc_port", {}) as router,
        _started("benchmarks.gateway_proxy", [stub.port], "port", {}) as proxy,
    ):
        yield stub, router, proxy


@contextmanager
def gateway_among(
    stub: Process, router: Process, proxy: Process, settings: Mapping[str, str]
) -> Iterator[Stack]:
    """Starts the gateway with some settings that differ from the default ones."""
    known = {"LORAUTER_ROUTER_ADDRESS": f"127.0.0.1:{router.port}", "LORAUTER_LOG_LEVEL": "error"}
    with _started("lorauter_gateway.main", [], "http_port", {**known, **settings}) as gateway:
        targets = (Target(stub.port), Target(gateway.port), Target(proxy.port))
        try:
            yield Stack(stub, router, gateway, *targets)
        finally:
            for target in targets:
                target.close()


@contextmanager
def _started(
    module: str, arguments: Sequence[object], port: str, environment: Mapping[str, str]
) -> Iterator[Process]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Process(process.pid, json.loads(process.stdout.readline())[port])
        finally:
            process.stdin.close()
            process.terminate()
            process.wait(30)
