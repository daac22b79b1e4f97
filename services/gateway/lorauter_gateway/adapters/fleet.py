"""The backends that the router names, as clients of their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import httpx

from lorauter.errors import Unavailable
from lorauter.router.v1 import router_pb2
from lorauter.telemetry import get_logger
from lorauter_gateway.adapters.engine import EngineBackend
from lorauter_gateway.domain.rotation import Rotation
from lorauter_gateway.ports import Backend, Candidate

_log = get_logger(__name__)

KINDS: Mapping[str, Callable[[str, httpx.AsyncClient], Backend]] = {"engine": EngineBackend}
"""How to talk to a backend of each kind."""


class HttpFleet:
    """Implements ports.Fleet over one pool of keep-alive connections."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._rotation = Rotation()

    def candidates(self, pool: router_pb2.PoolSnapshot) -> list[Candidate]:
        """See ports.Fleet."""
        active = {backend.backend_id: backend for backend in pool.backends if not backend.draining}
        if not active:
            raise Unavailable(
                "NO_BACKEND",
                f"pool {pool.pool!r} has no active backend: register one",
                pool=pool.pool,
            )
        known = [name for name, backend in active.items() if backend.kind in KINDS]
        if not known:
            kinds = ", ".join(sorted({backend.kind for backend in active.values()}))
            raise Unavailable(
                "BACKEND_KIND_UNKNOWN",
                f"pool {pool.pool!r} has only backends of kinds that this gateway does not speak: {kinds}",
                pool=pool.pool,
            )
        return [self._candidate(active[name]) for name in self._rotation.order(pool.pool, known)]

    def _candidate(self, backend: router_pb2.Backend) -> Candidate:
        return Candidate(backend.backend_id, backend.kind, KINDS[backend.kind](backend.url, self._http))

    def report_down(self, backend_id: str) -> None:
        """See ports.Fleet."""
        if backend_id not in self._rotation.failed:
            _log.warning("gateway.backend.lost", backend_id=backend_id)
        self._rotation.fail(backend_id)

    async def probe(self, pools: Iterable[router_pb2.PoolSnapshot]) -> None:
        """Asks the backends that were down whether they are healthy, and forgets those that are gone."""
        listed = {backend.backend_id: backend for pool in pools for backend in pool.backends}
        for backend_id in list(self._rotation.failed):
            backend = listed.get(backend_id)
            if backend is None or backend.kind not in KINDS:
                self._rotation.restore(backend_id)
            elif await self._candidate(backend).backend.is_healthy():
                self._rotation.restore(backend_id)
                _log.info("gateway.backend.restored", backend_id=backend_id)
