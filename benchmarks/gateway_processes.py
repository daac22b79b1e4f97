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
from tempfile import TemporaryDirectory

from benchmarks.gateway_load import Target
from lorauter.access import make_key
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running
from lorauter_suite.embedded.valkey import valkey_process, valkey_url

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
    to_gateway_limited: Target
    to_proxy: Target

    def processes(self) -> Mapping[str, Process]:
        """Returns those on the way of a routed request by name."""
        return {"gateway": self.gateway, "router": self.router, "stub": self.stub}


@dataclass(frozen=True, slots=True)
class Peers:
    """What a gateway works with: processes, keys, and how it finds them."""

    stub: Process
    router: Process
    proxy: Process
    plain_key: str
    limited_key: str
    environment: Mapping[str, str]


@contextmanager
def peers(seed: int) -> Iterator[Peers]:
    """Starts a stub, the router that has it as a backend, what knows keys, and a plain proxy before the stub.

    Valkey counts what the limited key uses.
    """
    own, plain, limited = (make_key() for _ in range(3))
    valkey_port = free_port()
    with (
        TemporaryDirectory() as folder,
        running(valkey_process(Path(folder), valkey_port)),
        _started("benchmarks.gateway_stub", [], "port", {}) as stub,
        _started("benchmarks.gateway_keys", [own, plain, limited], "grpc_port", {}) as keys,
        _started("benchmarks.gateway_router", [stub.port, seed, keys.port], "grpc_port", {}) as router,
        _started("benchmarks.gateway_proxy", [stub.port], "port", {}) as proxy,
    ):
        environment = {
            "LORAUTER_ROUTER_ADDRESS": f"127.0.0.1:{router.port}",
            "LORAUTER_REGISTRY_ADDRESS": f"127.0.0.1:{keys.port}",
            "LORAUTER_API_KEY": own,
            "REDIS_URL": valkey_url(valkey_port, 0),
            "LORAUTER_LOG_LEVEL": "error",
        }
        yield Peers(stub, router, proxy, plain, limited, environment)


@contextmanager
def gateway_among(others: Peers, settings: Mapping[str, str]) -> Iterator[Stack]:
    """Starts the gateway with some settings that differ from the default ones."""
    environment = {**others.environment, **settings}
    with _started("lorauter_gateway.main", [], "http_port", environment) as gateway:
        gateway_target = Target(gateway.port, key=others.plain_key)
        limited = Target(gateway.port, key=others.limited_key)
        targets = (Target(others.stub.port), gateway_target, limited, Target(others.proxy.port))
        try:
            yield Stack(others.stub, others.router, gateway, *targets)
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
