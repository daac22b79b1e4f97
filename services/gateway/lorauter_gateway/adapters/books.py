"""The books of all gateways in Redis: who has loaded what on which replica, and who uses it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from lorauter.telemetry import get_logger
from lorauter_gateway.adapters import books_lua
from lorauter_gateway.ports import BooksAway, Grant, Granted, Reconciled

_log = get_logger(__name__)

_SECONDS = 1.0
_PAUSE_SECONDS = 1.0
_KEYS = ("states", "used", "leases", "gone")


class Link:
    """A connection to Redis that fails at once for a second after it failed. Belongs to one event loop."""

    def __init__(self, url: str) -> None:
        # a socket_timeout would send by asyncio.wait_for, which on Python 3.11 swallows cancellations
        self.redis: Any = Redis.from_url(url, socket_timeout=None, socket_connect_timeout=_SECONDS)
        self._away_until = 0.0
        self._is_away = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Any]:
        """Lends the client; raises BooksAway for what it raises."""
        if monotonic() < self._away_until:
            raise BooksAway
        try:
            async with asyncio.timeout(_SECONDS):
                yield self.redis
        except (RedisError, OSError) as error:
            self._away_until = monotonic() + _PAUSE_SECONDS
            if not self._is_away:
                _log.warning("gateway.books.away", error=type(error).__name__)
            self._is_away = True
            raise BooksAway from None
        if self._is_away:
            _log.info("gateway.books.back")
            self._is_away = False

    async def close(self) -> None:
        """Disconnects."""
        await self.redis.aclose()


class RedisBooks:
    """Implements ports.Books. ``lease_seconds`` after a gateway's death its uses are over, ``load_seconds``
    after its death others may load what it was loading."""

    def __init__(self, link: Link, lease_seconds: float = 30.0, load_seconds: float = 60.0) -> None:
        self.lease_seconds = lease_seconds
        self.load_seconds = load_seconds
        self.owner = secrets.token_hex(8)
        self._link = link
        self._scripts = {
            name: link.redis.register_script(getattr(books_lua, name))
            for name in ("ACQUIRE", "LOADED", "FAILED", "EVICTED", "FORGET", "RELEASE", "RENEW", "RECONCILE")
        }

    async def acquire(self, replica: str, name: str, slots: int) -> Granted:
        """See ports.Books."""
        found = await self._run("ACQUIRE", replica, name, self._lease, self._hold, slots)
        grant, at, *victims = found
        return Granted(Grant(grant.decode()), int(at), tuple(victim.decode() for victim in victims))

    async def loaded(self, replica: str, name: str) -> int:
        """See ports.Books."""
        return int(await self._run("LOADED", replica, name, self._lease))

    async def failed(self, replica: str, name: str, is_gone: bool, victims: Sequence[str]) -> None:
        """See ports.Books."""
        await self._run("FAILED", replica, name, int(is_gone), *victims)

    async def evicted(self, replica: str, name: str) -> None:
        """See ports.Books."""
        await self._run("EVICTED", replica, name)

    async def forget(self, replica: str, name: str, known_at: int) -> None:
        """See ports.Books."""
        await self._run("FORGET", replica, name, known_at)

    async def release(self, replica: str, name: str) -> None:
        """See ports.Books."""
        await self._run("RELEASE", replica, name)

    async def renew(self, replica: str, names: Sequence[str]) -> None:
        """See ports.Books."""
        await self._run("RENEW", replica, self._lease, *names)

    async def now(self) -> int:
        """See ports.Books."""
        async with self._link.use() as redis:
            seconds, microseconds = await redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def reconcile(self, replica: str, listed: Sequence[str], since: int, slots: int) -> Reconciled:
        """See ports.Books."""
        found = await self._run("RECONCILE", replica, self._hold, since, slots, *listed)
        ready, adopt, unload = ([item.decode() for item in part] for part in found)
        return Reconciled(frozenset(ready), tuple(adopt), tuple(unload))

    @property
    def _lease(self) -> int:
        return round(1000 * self.lease_seconds)

    @property
    def _hold(self) -> int:
        return round(1000 * self.load_seconds)

    async def _run(self, script: str, replica: str, *arguments: object) -> Any:
        keys = [f"lorauter:books:{{{replica}}}:{part}" for part in _KEYS]
        async with self._link.use():
            return await self._scripts[script](keys=keys, args=[self.owner, *arguments])
