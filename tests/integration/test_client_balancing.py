"""Clients use all servers behind a name, and go on when one, or a connection, ends."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lorauter import AsyncClient
from lorauter.client import NO_RETRY, RetryPolicy
from lorauter.router.v1 import router_pb2, router_pb2_grpc
from lorauter.server import grpc as server_kit
from lorauter.server.grpc import GrpcServer


class RouterPeer(router_pb2_grpc.RouterServiceServicer):
    """Answers every query, and knows from which connections."""

    def __init__(self) -> None:
        self.connections: Counter[str] = Counter()

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:
        self.connections[context.peer()] += 1
        return router_pb2.RouteResponse()


@asynccontextmanager
async def serving(peer: RouterPeer) -> AsyncIterator[tuple[GrpcServer, int]]:
    """Serves on a port of its own."""
    server = GrpcServer()
    router_pb2_grpc.add_RouterServiceServicer_to_server(peer, server.server)
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.stop(0)


async def test_calls_go_to_all_addresses_in_turn_and_past_one_that_ends() -> None:
    first, second = RouterPeer(), RouterPeer()  # type: ignore[abstract]
    async with (
        serving(first) as (ending, one),
        serving(second) as (_, other),
        AsyncClient(router=f"ipv4:127.0.0.1:{one},127.0.0.1:{other}") as client,
    ):
        deadline = time.monotonic() + 20
        while not (first.connections and second.connections) and time.monotonic() < deadline:
            await client.route("query")
        before = first.connections.total()
        for _ in range(20):
            await client.route("query")
        assert 9 <= first.connections.total() - before <= 11
        await ending.stop(0)
        served = second.connections.total()
        for _ in range(20):
            await client.route("query")
        assert second.connections.total() == served + 20


async def test_clients_connect_anew_and_no_call_fails_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_kit, "CONNECTION_MILLISECONDS", 100)
    peer = RouterPeer()  # type: ignore[abstract]
    async with serving(peer) as (_, port), AsyncClient(router=f"127.0.0.1:{port}", retry=NO_RETRY) as client:
        deadline = time.monotonic() + 20
        while len(peer.connections) < 4 and time.monotonic() < deadline:
            await client.route("query")
        assert len(peer.connections) >= 4


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
    sink.close()


@asynccontextmanager
async def dropping(port: int, connections: int) -> AsyncIterator[int]:
    """Leads to a server, but ends the first connections at once, as a load balancer in a change does."""
    left = iter(range(connections))

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(left, None) is not None:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))

    async with await asyncio.start_server(lead, "127.0.0.1", 0) as leading:
        yield leading.sockets[0].getsockname()[1]


async def test_call_gets_over_connections_that_fail() -> None:
    peer = RouterPeer()  # type: ignore[abstract]
    steady = RetryPolicy(attempts=1_000, first_seconds=0.05, longest_seconds=0.05)
    async with (
        serving(peer) as (_, server),
        dropping(server, 5) as port,  # 16 s with the library's own pauses, 2 with ours
        AsyncClient(router=f"127.0.0.1:{port}", retry=steady, timeout_seconds=10) as client,
    ):
        await client.route("query")
    assert peer.connections.total() == 1
