"""The registry on real parts behind both of its transports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from lorauter.registry.v1 import registry_pb2_grpc
from lorauter_registry.config import Settings
from lorauter_registry.main import assembled
from lorauter_registry.service import Registry


@dataclass(frozen=True)
class Served:
    """The registry's service, both ways to it, and files for it."""

    registry: Registry
    rpc: registry_pb2_grpc.RegistryServiceAsyncStub
    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    files: Any


@pytest.fixture
async def served(postgres_url: str, redis_url: str, tmp_path: Path, tiny_pool: Any) -> AsyncIterator[Served]:
    """The registry on an empty database, without sockets for REST and on loopback for gRPC."""
    settings = Settings.model_validate(
        {
            "database_url": postgres_url,
            "redis_url": redis_url,
            "adapter_store": tmp_path / "store",
            "adapter_roots": str(tiny_pool.root),
            "watch_seconds": 0.02,
            "max_validation_set_bytes": 1024 * 1024,
        }
    )
    with assembled(settings) as parts:
        port = await parts.grpc_server.start("127.0.0.1", 0)
        transport = httpx.ASGITransport(parts.rest, raise_app_exceptions=False)
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            httpx.AsyncClient(transport=transport, base_url="http://registry") as http,
        ):
            rpc: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(channel)
            yield Served(parts.registry, rpc, channel, http, tiny_pool)
        await parts.grpc_server.stop(1)
