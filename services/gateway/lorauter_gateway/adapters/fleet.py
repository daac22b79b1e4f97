"""The backends that the router names, as clients of their replicas."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from urllib.parse import urlsplit

from lorauter.router.v1.router_pb2 import Backend
from lorauter.telemetry import get_logger
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.kinds import KINDS
from lorauter_gateway.ports import Driver, Endpoint

_log = get_logger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a name; raises OSError."""

_MANY = "dns+"
_RESOLVE_SECONDS = 2.0


class KnownFleet:
    """Implements ports.Fleet: the kinds in KINDS.

    ``dns+http://name:port`` stands for one replica at every address of the name, asked for again
    ``every_seconds``; every other URL is one replica.
    """

    def __init__(
        self, connections: Connections, every_seconds: float, resolve: Resolve | None = None
    ) -> None:
        self._connections = connections
        self._resolve = resolve or _addresses
        self._every_seconds = every_seconds
        self._drivers: dict[tuple[str, str], Driver] = {}
        self._addresses: dict[str, tuple[float, list[str]]] = {}

    def speaks(self, kind: str) -> bool:
        """See ports.Fleet."""
        return kind in KINDS

    async def endpoints(self, tenant: str, backend: Backend) -> Sequence[Endpoint]:
        """See ports.Fleet."""
        is_many = backend.url.startswith(_MANY)
        urls = await self._resolved(backend.url.removeprefix(_MANY)) if is_many else [backend.url]
        kind = KINDS[backend.kind]
        names = {url: f"{tenant}/{backend.backend_id}@{url}" for url in urls}
        return [
            Endpoint(
                replica=names[url],
                backend_id=backend.backend_id,
                kind=backend.kind,
                url=url,
                takes=kind.takes,
                driver=self._driver(names[url], backend.kind, url),
                max_rank=backend.max_rank or kind.max_rank,
                slots=max(1, backend.adapter_slots),
                adapters_path=backend.adapters_path,
                shards=max(1, backend.shards),
                max_concurrent_requests=backend.max_concurrent_requests,
                draining=backend.draining,
                is_one_of_several=is_many,
            )
            for url in urls
        ]

    def _driver(self, replica: str, kind: str, url: str) -> Driver:
        found = self._drivers.get((replica, kind))
        if found is None:
            found = self._drivers[replica, kind] = KINDS[kind].make(url, self._connections)
        return found

    async def _resolved(self, url: str) -> list[str]:
        since, known = self._addresses.get(url, (-1e9, []))
        if monotonic() - since < self._every_seconds:
            return known
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                hosts = await self._resolve(parts.hostname or "", port)
        except (OSError, TimeoutError) as error:
            _log.warning("gateway.backend.unresolved", url=url, error=type(error).__name__)
        else:
            known = [f"{parts.scheme}://{_bracketed(host)}:{port}{parts.path}" for host in hosts]
        self._addresses[url] = (monotonic(), known)
        return known


async def _addresses(name: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
