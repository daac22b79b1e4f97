"""Compositions that are written on demand: asks for them on a Redis stream, learns from a hash."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from lorauter.compositions_wanted import (
    ASKED_SECONDS,
    MOST_WAITING,
    WANTED,
    WRITTEN,
    Member,
    Refusal,
    Wanted,
    Written,
    asked_key,
    key_of,
    read_fate,
)
from lorauter.errors import InvalidArgument
from lorauter_gateway.adapters.books import Link
from lorauter_gateway.domain.plan import Skipped, WeightedAdapter, Why
from lorauter_gateway.ports import Composite, Endpoint

_WRITTEN_SECONDS = 5.0
_REMEMBERED = 4096


class RedisComposites:
    """Implements ports.Composites."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._known: dict[str, tuple[float, Written | Refusal]] = {}

    async def find(
        self, tenant: str, pool: str, endpoint: Endpoint, adapters: Sequence[WeightedAdapter]
    ) -> Composite:
        """See ports.Composites."""
        try:
            members = tuple(Member(a.adapter_id, a.version, a.digest, a.weight) for a in adapters)
            kind, rank, shards = endpoint.kind, endpoint.max_rank, endpoint.shards
            wanted = Wanted(tenant, pool, kind, rank, shards, members)  # type: ignore[arg-type]
        except ValueError:
            raise Skipped(Why.NOT_WRITTEN, "its members cannot be written as one adapter") from None
        key = key_of(wanted)
        fate = self._remembered(key)
        if fate is None:
            fate = await self._asked(key, wanted)
        if isinstance(fate, Written):
            return Composite(fate.name, fate.rank)
        if isinstance(fate, Refusal) and fate.counts():
            raise Skipped(Why.NOT_WRITTEN, f"its composite was not written: {fate.message}")
        raise Skipped(Why.NOT_WRITTEN, "its composite is being written beside this request")

    def _remembered(self, key: str) -> Written | Refusal | None:
        known = self._known.get(key)
        return known[1] if known is not None and monotonic() < known[0] else None

    async def _asked(self, key: str, wanted: Wanted) -> Written | Refusal | None:
        async with self._link.use() as redis:
            data = await redis.hget(WRITTEN, key)
            fate = _read(data) if data else None
            is_open = fate is None or (isinstance(fate, Refusal) and not fate.counts())
            if is_open and await redis.set(asked_key(key), b"1", nx=True, ex=ASKED_SECONDS):
                await redis.xadd(WANTED, wanted.entry(), maxlen=MOST_WAITING)
        while len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        if fate is not None:
            self._known[key] = (monotonic() + _WRITTEN_SECONDS, fate)
        return fate


def _read(data: bytes) -> Written | Refusal | None:
    try:
        return read_fate(data)
    except InvalidArgument:
        return None  # another version wrote it
