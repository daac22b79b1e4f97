"""Starts the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvloop

from lorauter import tracing
from lorauter.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from lorauter.server.access import Gate
from lorauter.server.grpc import GrpcServer
from lorauter.server.remote_keys import gate_of
from lorauter.server.run import serve
from lorauter.telemetry import configure_logging, get_logger
from lorauter_gateway.adapters.books import Link, RedisBooks
from lorauter_gateway.adapters.composites import RedisComposites
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.fleet import KnownFleet
from lorauter_gateway.adapters.quotas import RedisQuotas
from lorauter_gateway.adapters.router import GrpcRouter
from lorauter_gateway.api.grpc import GatewayServicer
from lorauter_gateway.api.http import create_http
from lorauter_gateway.config import Settings
from lorauter_gateway.domain.stickiness import Stickiness
from lorauter_gateway.service import Gateway
from lorauter_gateway.service.admission import Admission
from lorauter_gateway.service.quotas import Quotas
from lorauter_gateway.service.replicas import Replicas

_log = get_logger(__name__)


def main() -> None:
    """Runs the gateway until SIGTERM."""
    settings = Settings.load()
    configure_logging("gateway", settings.log_level, settings.log_format)
    tracing.configure("gateway", settings.trace_prompts)
    _log.info("gateway.settings.read", **settings.redacted())
    uvloop.run(run(settings))


async def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    async with gate_of(settings) as gate, assembled(settings) as gateway:
        http = create_http(gateway, settings, gate)
        await serve(settings, http, grpc_server(gateway, settings, gate))


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Gateway]:
    """Puts the gateway together on its real ports, and follows the router meanwhile."""
    router = GrpcRouter(settings.router_address, settings.api_key.get_secret_value(), settings.client_tls())
    link = Link(str(settings.redis_url)) if settings.redis_url is not None else None
    connections = Connections(
        settings.request_timeout_seconds, settings.connect_timeout_seconds, settings.backend_access()
    )
    async with connections as backends:
        replicas = Replicas(
            KnownFleet(backends, settings.probe_seconds),
            RedisBooks(link) if link else None,
            settings.probe_seconds,
            settings.backend_concurrency,
        )
        gateway = Gateway(
            router,
            replicas,
            RedisComposites(link) if link else None,
            Admission(settings.max_concurrent_requests, settings.log_requests),
            settings.route_timeout_seconds,
            Stickiness(settings.conversation_margin),
            Quotas(RedisQuotas(link) if link else None, settings.quota_fallback == "allow"),
        )
        follower = asyncio.create_task(router.follow(settings.snapshot_poll_seconds, replicas.update))
        try:
            yield gateway
        finally:
            follower.cancel()
            with suppress(asyncio.CancelledError):
                await follower
            await gateway.close()
            await replicas.close()
            await router.close()
            if link is not None:
                await link.close()


def grpc_server(gateway: Gateway, settings: Settings, gate: Gate) -> GrpcServer:
    """Returns the gRPC server, with messages as large as HTTP bodies may be."""
    server = GrpcServer(settings.max_body_bytes, gate)
    servicer = GatewayServicer(gateway, settings.request_timeout_seconds)
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, server.server)
    server.announce(gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"])
    return server


if __name__ == "__main__":
    main()
