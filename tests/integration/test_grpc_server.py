"""What every service's gRPC server promises, whatever its own calls are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lorauter.server.grpc import GrpcServer

LIMIT = 64 * 1024


@pytest_asyncio.fixture
async def stub() -> AsyncIterator[health_pb2_grpc.HealthStub]:
    server = GrpcServer(LIMIT)
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await server.stop(0)


async def test_health_lists_all_services(stub: health_pb2_grpc.HealthStub) -> None:
    listed = (await stub.List(health_pb2.HealthListRequest(), timeout=20)).statuses
    assert set(listed) == {"", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert {each.status for each in listed.values()} == {health_pb2.HealthCheckResponse.NOT_SERVING}


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_message_is_refused_when_it_is_too_large_once_it_is_unpacked(
    stub: health_pb2_grpc.HealthStub, compression: grpc.Compression
) -> None:
    """Sixteen MiB of one letter travel as sixteen KiB, a quarter of the limit."""
    bomb = health_pb2.HealthCheckRequest(service="a" * (16 * 1024 * 1024))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(bomb, compression=compression, timeout=20)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    small = health_pb2.HealthCheckRequest(service="")
    assert (await stub.Check(small, compression=compression, timeout=20)).status
