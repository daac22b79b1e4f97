"""The asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Self, Unpack

import grpc

from lorauter.client.aio_transport import AsyncTransport
from lorauter.client.builders import GenerateOptions, Prompt, RouteOptions, generate_request, route_request
from lorauter.client.options import (
    CHANNEL_OPTIONS,
    TIMEOUT_SECONDS,
    RetryPolicy,
    access_metadata,
    addresses,
    known_address,
)
from lorauter.client.registry import AsyncRegistry
from lorauter.client.router import AsyncRouter
from lorauter.client.secure import ChannelTls
from lorauter.gateway.v1.gateway_pb2 import GenerateResponse, GenerateStreamResponse
from lorauter.router.v1.router_pb2 import RouteResponse
from lorauter.tls import Tls

_GATEWAY = "/lorauter.gateway.v1.GatewayService"


class AsyncClient:
    """Like Client, for one event loop. Connections open at the first call, inside the running loop."""

    registry: AsyncRegistry
    """The registry's calls."""
    router: AsyncRouter
    """The router's calls."""

    def __init__(
        self,
        registry: str | None = None,
        router: str | None = None,
        gateway: str | None = None,
        *,
        api_key: str | None = None,
        tenant: str = "",
        timeout_seconds: float = TIMEOUT_SECONDS,
        retry: RetryPolicy | None = None,
        tls: Tls | None = None,
    ) -> None:
        secure = ChannelTls(tls or Tls.from_environment())
        self._channels = _Channels(addresses(registry, router, gateway), secure)
        self._retry = retry or RetryPolicy()
        self._metadata = access_metadata(api_key, tenant)
        self._bind(timeout_seconds)

    def _bind(self, timeout_seconds: float) -> None:
        def transport(service: str) -> AsyncTransport:
            connect = self._channels.connector(service)
            return AsyncTransport(connect, timeout_seconds, self._retry, self._metadata)

        self.registry = AsyncRegistry(transport("registry"))
        self.router = AsyncRouter(transport("router"))
        self._gateway = transport("gateway")

    def with_timeout(self, timeout_seconds: float) -> Self:
        """Returns this client with another deadline, on the same connections."""
        other = object.__new__(type(self))
        other._channels, other._retry, other._metadata = self._channels, self._retry, self._metadata
        other._bind(timeout_seconds)
        return other

    async def route(self, prompt: Prompt, **options: Unpack[RouteOptions]) -> RouteResponse:
        """Like Client.route."""
        transport = self.router.transport
        path = f"/{AsyncRouter.service}/Route"
        return await transport.unary(path, route_request(prompt, **options), RouteResponse, idempotent=True)

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> GenerateResponse:
        """Like Client.generate."""
        request = generate_request(prompt, **options)
        return await self._gateway.unary(f"{_GATEWAY}/Generate", request, GenerateResponse, idempotent=False)

    def generate_stream(
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[GenerateStreamResponse, None]:
        """Like Client.generate_stream."""
        request = generate_request(prompt, **options)
        return self._gateway.download(f"{_GATEWAY}/GenerateStream", request, GenerateStreamResponse)

    async def close(self) -> None:
        """Closes the connections."""
        await self._channels.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Channels:
    def __init__(self, known: Mapping[str, str], tls: ChannelTls) -> None:
        self._known = known
        self._tls = tls
        self._open: dict[str, tuple[grpc.ChannelCredentials | None, grpc.aio.Channel]] = {}
        self._replaced: list[grpc.aio.Channel] = []

    def connector(self, service: str) -> Callable[[], grpc.aio.Channel]:
        return partial(self._connect, service)

    def _connect(self, service: str) -> grpc.aio.Channel:
        credentials = self._tls.current()
        found = self._open.get(service)
        if found is None or found[0] is not credentials:
            if found is not None:
                self._replaced.append(found[1])  # calls under way are on it; idle, it costs next to nothing
            found = (credentials, self._new(known_address(service, self._known), credentials))
            self._open[service] = found
        return found[1]

    def _new(self, address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)

    async def close(self) -> None:
        while self._open:
            self._replaced.append(self._open.popitem()[1][1])
        while self._replaced:
            await self._replaced.pop().close()
