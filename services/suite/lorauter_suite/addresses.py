"""Where the parts of a suite listen: chosen once for a data directory, and kept."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorauter import AsyncClient, Client
from lorauter_suite.embedded.ports import free_port, is_free

_PATIENCE_SECONDS = 3.0
"""How long to wait for a port that a killed suite's children may still hold."""


@dataclass(frozen=True)
class Addresses:
    """Where a running suite can be reached. HTTP addresses are URLs, gRPC ones host:port."""

    registry_http: str
    registry_grpc: str
    router_http: str
    router_grpc: str
    gateway_http: str
    gateway_grpc: str
    engine_http: str
    index_http: str
    database_url: str
    """With its password."""
    redis_url: str
    incoming: str
    """Folder from which the registry copies adapters; put yours there."""
    api_key: str = field(default="", repr=False)
    """A key that may do everything, for all tenants."""

    @property
    def headers(self) -> dict[str, str]:
        """What a request over HTTP carries."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def client(self, **options: Any) -> Client:
        """Returns a client of the suite; ``options`` are Client's."""
        return Client(**self._reached_by(options))

    def aio_client(self, **options: Any) -> AsyncClient:
        """Returns an asynchronous client of the suite; ``options`` are AsyncClient's."""
        return AsyncClient(**self._reached_by(options))

    def _reached_by(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "registry": self.registry_grpc,
            "router": self.router_grpc,
            "gateway": self.gateway_grpc,
            "api_key": self.api_key,
            **options,
        }


def choose_ports(path: Path, names: Iterable[str], wanted: Mapping[str, int]) -> dict[str, int]:
    """Returns a port for each name: the wanted one, else the one kept in ``path``, else a free one.

    What is chosen is kept. A kept port that somebody else took meanwhile is replaced.
    """
    kept = _read(path)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    ports: dict[str, int] = {}
    for name in names:
        taken = set(ports.values()) | set(wanted.values())
        port = wanted.get(name) or kept.get(name, 0)
        while name not in wanted and port and port not in taken and not is_free(port):
            if time.monotonic() > deadline:
                port = 0
            time.sleep(0.05)
        is_usable = port and port not in ports.values()
        ports[name] = port if is_usable else free_port(taken | set(kept.values()))
    write_private(path, json.dumps({**kept, **ports}, indent=2))
    return ports


def write_private(path: Path, text: str) -> None:
    """Replaces a file atomically; only its owner may read it."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    building.unlink(missing_ok=True)
    descriptor = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    building.replace(path)


def to_document(addresses: Addresses, pids: Mapping[str, int | None]) -> str:
    """Returns the JSON of suite.json."""
    return json.dumps({"pid": os.getpid(), "addresses": asdict(addresses), "processes": pids}, indent=2)


def from_document(text: str) -> Addresses | None:
    """Returns the addresses in suite.json, or None if it is not one of ours."""
    try:
        return Addresses(**json.loads(text)["addresses"])
    except (ValueError, KeyError, TypeError):
        return None


def _read(path: Path) -> dict[str, int]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: port for name, port in found.items() if isinstance(port, int) and 0 < port < 65536}
