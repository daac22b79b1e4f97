"""Starts the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx

from lorauter.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from lorauter.router.v1.router_pb2 import GetSnapshotResponse
from lorauter.server.grpc import GrpcServer
from lorauter.server.run import serve
from lorauter.telemetry import configure_logging, get_logger
from lorauter_gateway.adapters.fleet import HttpFleet
from lorauter_gateway.adapters.router import GrpcRouter
from lorauter_gateway.api.grpc import GatewayServicer
from lorauter_gateway.api.http import create_http
from lorauter_gateway.config import Settings
from lorauter_gateway.service import Gateway

_log = get_logger(__name__)
_KEPT_CONNECTIONS = 128


def main() -> None:
    """Runs the gateway until SIGTERM."""
    settings = Settings.load()
    configure_logging("gateway", settings.log_level, settings.log_format)
    _log.info("gateway.settings.read", **settings.redacted())
    asyncio.run(run(settings))


async def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    async with assembled(settings) as gateway:
        await serve(settings, create_http(gateway, settings), grpc_server(gateway, settings))


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Gateway]:
    """Puts the gateway together on its real ports, and follows the router meanwhile."""
    router = GrpcRouter(settings.router_address)
    async with backend_connections(settings) as http:
        fleet = HttpFleet(http)

        async def seen(snapshot: GetSnapshotResponse) -> None:
            await fleet.probe(snapshot.pools)

        follower = asyncio.create_task(router.follow(settings.snapshot_poll_seconds, seen))
        try:
            yield Gateway(router, fleet, settings.max_concurrent_requests, settings.route_timeout_seconds)
        finally:
            follower.cancel()
            with suppress(asyncio.CancelledError):
                await follower
            await router.close()


def backend_connections(settings: Settings) -> httpx.AsyncClient:
    """Returns the pool of connections to all backends. Reads wait as long as the request may take."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(
            settings.request_timeout_seconds, connect=settings.connect_timeout_seconds, pool=None
        ),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT_CONNECTIONS),
        trust_env=False,
    )


def grpc_server(gateway: Gateway, settings: Settings) -> GrpcServer:
    """Returns the gRPC server, with messages as large as HTTP bodies may be."""
    server = GrpcServer(settings.max_body_bytes)
    servicer = GatewayServicer(gateway, settings.request_timeout_seconds)
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, server.server)
    server.announce(gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name)
    return server


if __name__ == "__main__":
    main()
