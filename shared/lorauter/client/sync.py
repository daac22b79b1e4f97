"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Self, Unpack

import grpc

from lorauter.client.builders import GenerateOptions, Prompt, RouteOptions, generate_request, route_request
from lorauter.client.options import (
    CHANNEL_OPTIONS,
    TIMEOUT_SECONDS,
    RetryPolicy,
    access_metadata,
    addresses,
    known_address,
)
from lorauter.client.registry import Registry
from lorauter.client.router import Router
from lorauter.client.secure import ChannelTls
from lorauter.client.transport import SyncTransport
from lorauter.gateway.v1.gateway_pb2 import GenerateResponse, GenerateStreamResponse
from lorauter.router.v1.router_pb2 import RouteResponse
from lorauter.tls import Tls

_GATEWAY = "/lorauter.gateway.v1.GatewayService"


class Client:
    """Calls registry, router and gateway; safe to share between threads.

    Addresses are ``host:port`` and default to LORAUTER_REGISTRY_ADDRESS, LORAUTER_ROUTER_ADDRESS and
    LORAUTER_GATEWAY_ADDRESS; a service is connected to when it is first called. Every call carries
    ``api_key``, by default LORAUTER_API_KEY, and acts for ``tenant``, by default the key's own; it has a
    deadline and raises classes of lorauter.errors, with the server's reason and metadata. Reads, and
    writes by their ``request_id``, are retried on UNAVAILABLE; generations never are.

    Connections are TLS with ``tls``, by default LORAUTER_TLS_CA, LORAUTER_TLS_CERTIFICATE and
    LORAUTER_TLS_KEY, and plain where LORAUTER_TLS_CA is not set either.
    """

    registry: Registry
    """The registry's calls."""
    router: Router
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
        def transport(service: str) -> SyncTransport:
            connect = self._channels.connector(service)
            return SyncTransport(connect, timeout_seconds, self._retry, self._metadata)

        self.registry = Registry(transport("registry"))
        self.router = Router(transport("router"))
        self._gateway = transport("gateway")

    def with_timeout(self, timeout_seconds: float) -> Self:
        """Returns this client with another deadline, on the same connections."""
        other = object.__new__(type(self))
        other._channels, other._retry, other._metadata = self._channels, self._retry, self._metadata
        other._bind(timeout_seconds)
        return other

    def route(self, prompt: Prompt, **options: Unpack[RouteOptions]) -> RouteResponse:
        """Returns the decision for a text or a conversation, without generating anything."""
        transport = self.router.transport
        path = f"/{Router.service}/Route"
        return transport.unary(path, route_request(prompt, **options), RouteResponse, idempotent=True)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> GenerateResponse:
        """Answers a text or a conversation with the adapters that the router decides on, or with a pin."""
        request = generate_request(prompt, **options)
        return self._gateway.unary(f"{_GATEWAY}/Generate", request, GenerateResponse, idempotent=False)

    def generate_stream(
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> Generator[GenerateStreamResponse, None, None]:
        """Like generate, piece by piece; closing the iterator stops the generation."""
        request = generate_request(prompt, **options)
        return self._gateway.download(f"{_GATEWAY}/GenerateStream", request, GenerateStreamResponse)

    def close(self) -> None:
        """Closes the connections."""
        self._channels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Channels:
    def __init__(self, known: Mapping[str, str], tls: ChannelTls) -> None:
        self._known = known
        self._tls = tls
        self._open: dict[str, tuple[grpc.ChannelCredentials | None, grpc.Channel]] = {}

    def connector(self, service: str) -> Callable[[], grpc.Channel]:
        return partial(self._connect, service)

    def _connect(self, service: str) -> grpc.Channel:
        credentials = self._tls.current()
        found = self._open.get(service)
        if found is None or found[0] is not credentials:
            # calls under way keep the channel that they were made on, until they end
            channel = self._new(known_address(service, self._known), credentials)
            if found is None:
                found = self._open.setdefault(service, (credentials, channel))
                if found[1] is not channel:
                    channel.close()
            else:
                found = self._open[service] = (credentials, channel)
        return found[1]

    def _new(self, address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][1].close()
