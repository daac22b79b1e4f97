"""Tells that a server's process ended, however soon another one listens at its address."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit


class Tether(asyncio.Protocol):
    """A connection on which nothing is sent. Over TLS there is none: servers give up a missing handshake."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80) if parts.scheme == "http" else None
        self._transport: asyncio.BaseTransport | None = None
        self._is_cut = False

    async def hold(self, seconds: float) -> None:
        """Connects where there is no connection. Never raises."""
        if self._transport is not None or self._address is None:
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                await loop.create_connection(lambda: self, *self._address)
        except (OSError, TimeoutError):
            pass

    def was_cut(self) -> bool:
        """Whether the connection broke since the last call."""
        is_cut, self._is_cut = self._is_cut, False
        return is_cut

    def close(self) -> None:
        """Lets go."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._is_cut = True
