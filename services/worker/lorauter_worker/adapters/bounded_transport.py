"""HTTP whose answers have a limit: a server that never ends, or packs much into little, costs no memory."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import httpx

MAX_ANSWER_BYTES = 64 * 1024 * 1024


class BoundedTransport(httpx.HTTPTransport):
    """Never unpacks a body, and raises httpx.ReadError where one is over ``most`` bytes."""

    def __init__(
        self, limits: httpx.Limits, verify: ssl.SSLContext | bool, most: int = MAX_ANSWER_BYTES
    ) -> None:
        super().__init__(verify=verify, limits=limits, trust_env=False)
        self._most = most

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx.BaseTransport."""
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Bounded(response.stream, self._most)
        response.headers.pop("content-encoding", None)
        return response


class _Bounded(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, most: int) -> None:
        self._stream = stream
        self._most = most

    def __iter__(self) -> Iterator[bytes]:
        left = self._most
        for part in self._stream:
            left -= len(part)
            if left < 0:
                raise httpx.ReadError(f"an answer of over {self._most} bytes")
            yield part

    def close(self) -> None:
        self._stream.close()
