"""The keep-alive connections to all replicas of all backends."""

from __future__ import annotations

import ssl

import aiohttp

from lorauter.backends import PLAIN, BackendAccess
from lorauter_gateway.adapters.tether import Tether

_KEEP_ALIVE_SECONDS = 4.0
"""Idle connections are closed before servers do it: uvicorn, which vLLM and the engine run on, waits 5 s."""


class Connections:
    """An async context manager around one client session.

    ``request_timeout_seconds`` bounds the silence between two reads, not a request as a whole: deadlines are
    the caller's. ``connect_timeout_seconds`` bounds name resolution, connecting and TLS together. ``access``
    is how servers are called; of callers' headers nothing goes to them. No proxies from the environment, no
    cookies, no bound on the number of connections: admission is the gateway's.
    """

    def __init__(
        self,
        request_timeout_seconds: float,
        connect_timeout_seconds: float,
        access: BackendAccess = PLAIN,
    ) -> None:
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            connect=connect_timeout_seconds,
            sock_connect=connect_timeout_seconds,
            sock_read=request_timeout_seconds,
        )
        self.access = access
        self._session: aiohttp.ClientSession | None = None
        self._tethers: list[Tether] = []

    async def __aenter__(self) -> Connections:
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS, resolver=aiohttp.ThreadedResolver()
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "accept-encoding": "identity",
                "user-agent": "lorauter-gateway",
                **self.access.headers,
            },
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        for tether in self._tethers:
            tether.close()

    def ssl_for(self, url: str) -> ssl.SSLContext | bool:
        """Returns what a connection to ``url`` is opened with."""
        return self.access.context() if url.startswith("https:") else True

    def tether(self, url: str) -> Tether:
        """Returns a connection that tells when the server at ``url`` ends, to one who asks."""
        self._tethers.append(Tether(url))
        return self._tethers[-1]

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session; raises RuntimeError outside the context."""
        if self._session is None:
            raise RuntimeError("Connections are used inside 'async with'")
        return self._session
