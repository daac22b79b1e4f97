"""The router over gRPC, with the pools and backends that it last named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from lorauter import tracing
from lorauter.client import AsyncClient, RetryPolicy
from lorauter.errors import LorauterError, PermissionDenied, Unauthenticated, Unavailable
from lorauter.router.v1.router_pb2 import (
    GetSnapshotResponse,
    ResolveAdapterResponse,
    RouteRequest,
    RouteResponse,
)
from lorauter.server.traces import rpc_attributes
from lorauter.telemetry import get_logger
from lorauter.tls import Tls
from lorauter_gateway import metrics

_log = get_logger(__name__)
_ROUTE = "lorauter.router.v1.RouterService/Route"
_ROUTE_ATTRIBUTES = rpc_attributes(_ROUTE)
_RETRY = RetryPolicy(attempts=2, first_seconds=0.05)
_SNAPSHOT_SECONDS = 5.0
_PAGE = 1000


class GrpcRouter:
    """Implements ports.Router."""

    def __init__(self, address: str, api_key: str = "", tls: Tls | None = None) -> None:
        """``api_key`` must allow to read and to invoke, for all tenants; the router's access may be open."""
        self._client = AsyncClient(router=address, api_key=api_key, tls=tls, retry=_RETRY)
        self._snapshot: GetSnapshotResponse | None = None
        self._reachable = False
        self._trouble = ""

    async def route(self, request: RouteRequest, timeout_seconds: float) -> RouteResponse:
        """See ports.Router."""
        with _typed(), tracing.span(_ROUTE, "client", _ROUTE_ATTRIBUTES):
            return await self._client.router.transport.unary(
                f"/{_ROUTE}",
                request,
                RouteResponse,
                idempotent=True,
                timeout_seconds=timeout_seconds,
                metadata=tuple(tracing.carrier().items()),
            )

    async def resolve(
        self, tenant: str, pool: str, adapter: str, timeout_seconds: float
    ) -> ResolveAdapterResponse:
        """See ports.Router."""
        with _typed():
            router = self._client.with_timeout(timeout_seconds).router
            return await router.resolve_adapter(tenant=tenant, pool=pool, adapter=adapter)

    async def adapters(self, tenant: str) -> Sequence[ResolveAdapterResponse]:
        """See ports.Router."""
        with _typed():
            listing = self._client.router.list_servable_adapters(tenant=tenant, page_size=_PAGE)
            return [found async for found in listing]

    def snapshot(self) -> GetSnapshotResponse | None:
        """See ports.Router."""
        return self._snapshot

    def is_reachable(self) -> bool:
        """See ports.Router."""
        return self._reachable

    def trouble(self) -> str:
        """See ports.Router."""
        return self._trouble

    async def refresh(self) -> GetSnapshotResponse:
        """See ports.Router."""
        with _typed():
            router = self._client.with_timeout(_SNAPSHOT_SECONDS).router
            self._snapshot = await router.get_snapshot(all_tenants=True)
        return self._snapshot

    async def follow(
        self, every_seconds: float, seen: Callable[[GetSnapshotResponse], Awaitable[None]]
    ) -> None:
        """Refreshes until cancelled, and calls ``seen`` after each time; keeps the last one meanwhile."""
        while True:
            try:
                await self.refresh()
                self._note("")
            except LorauterError as error:
                metrics.SNAPSHOT_POLL_FAILURES.labels(error.reason).inc()
                self._note(error.message, reason=error.reason)
            if self._snapshot is not None:
                await seen(self._snapshot)
            await asyncio.sleep(every_seconds)

    def _note(self, trouble: str, **details: str) -> None:
        self._trouble, reachable = trouble, not trouble
        if reachable != self._reachable:
            _log.info("gateway.router.reached" if reachable else "gateway.router.lost", **details)
        self._reachable = reachable

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except Unavailable as error:
        if error.reason != "UNAVAILABLE":
            raise
        raise Unavailable("ROUTER_UNAVAILABLE", "the router does not answer: retry in a moment") from None
    except (Unauthenticated, PermissionDenied) as error:
        # it is this gateway that the router refuses: nobody else's key got there
        _log.error("gateway.router.refuses", reason=error.reason, problem=error.message)
        raise Unavailable(
            "ROUTER_REFUSES_KEY", "the router refuses the gateway's own key: check LORAUTER_API_KEY"
        ) from None
