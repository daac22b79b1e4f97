"""The registry on real parts behind both of its transports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

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
    address: str
    http: httpx.AsyncClient
    files: Any


@pytest.fixture
async def served(postgres_url: str, redis_url: str, tmp_path: Path, tiny_pool: Any) -> AsyncIterator[Served]:
    """The registry on an empty database, without sockets for REST and on loopback for gRPC."""
    async with _serving(postgres_url, redis_url, tmp_path, tiny_pool) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    postgres_server: Any, _migrated: str, tmp_path_factory: pytest.TempPathFactory, tiny_pools: Any
) -> AsyncIterator[Served]:
    """A registry for a module whose tests change nothing; its broker is away."""
    folder = tmp_path_factory.mktemp("registry")
    files = tiny_pools(folder / "incoming")
    with postgres_server.database(_migrated) as url:
        async with _serving(url, "redis://127.0.0.1:1/0", folder, files) as served:
            yield served


@asynccontextmanager
async def _serving(postgres_url: str, redis_url: str, folder: Path, files: Any) -> AsyncIterator[Served]:
    settings = Settings.model_validate(
        {
            "database_url": postgres_url,
            "redis_url": redis_url,
            "adapter_store": folder / "store",
            "adapter_roots": str(files.root),
            "watch_seconds": 0.02,
            "access": "open",
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
            yield Served(parts.registry, rpc, channel, f"127.0.0.1:{port}", http, files)
        await parts.grpc_server.stop(1)
