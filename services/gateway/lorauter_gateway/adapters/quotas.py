"""The books of what keys have used, in Redis, for all gateways together."""

from __future__ import annotations

from collections.abc import Sequence

from lorauter.access import Caller
from lorauter_gateway.adapters import quota_lua
from lorauter_gateway.adapters.books import Link
from lorauter_gateway.domain.quota import Left, Taken

_MICROSECONDS = 1e6


class RedisQuotas:
    """Implements ports.QuotaBooks. One round trip a call."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._take = link.redis.register_script(quota_lua.TAKE)
        self._correct = link.redis.register_script(quota_lua.CORRECT)

    async def take(self, caller: Caller, tokens: int) -> Taken:
        """See ports.QuotaBooks."""
        limits = (caller.requests_per_minute, caller.tokens_per_minute)
        async with self._link.use():
            found: Sequence[int] = await self._take(keys=[_key(caller)], args=[*limits, tokens])
        waits, rest = found[:2], found[2:]
        requests, of_tokens = (
            Left(limit, rest[2 * i], rest[2 * i + 1] / _MICROSECONDS) if limit else None
            for i, limit in enumerate(limits)
        )
        return Taken(requests, of_tokens, max(waits) / _MICROSECONDS, is_full=waits[0] >= waits[1])

    async def correct(self, caller: Caller, requests: int, tokens: int) -> None:
        """See ports.QuotaBooks."""
        limits = (caller.requests_per_minute, caller.tokens_per_minute)
        async with self._link.use():
            await self._correct(keys=[_key(caller)], args=[*limits, requests, tokens])


def _key(caller: Caller) -> str:
    return f"lorauter:quota:{caller.key_id}"
