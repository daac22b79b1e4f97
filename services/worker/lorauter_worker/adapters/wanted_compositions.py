"""What gateways want as composites, in Redis: a stream, and a hash of what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.exceptions import RedisError

from lorauter.compositions_wanted import WANTED, WRITTEN
from lorauter.errors import Unavailable
from lorauter_worker.ports import Entry

_SECONDS = 2.0


class RedisWantedCompositions:
    """WantedCompositions for any number of workers: whoever removes an entry has it."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS
        )

    def take(self) -> Entry | None:
        """See WantedCompositions."""
        with _translated():
            while found := self._oldest():
                identity, fields = found
                if self._redis.xdel(WANTED, identity):
                    return identity.decode(), fields
        return None

    def fates(self) -> Mapping[bytes, bytes]:
        """See WantedCompositions."""
        with _translated():
            found: Any = self._redis.hgetall(WRITTEN)
        return dict(found)

    def put(self, key: str, fate: str) -> None:
        """See WantedCompositions."""
        with _translated():
            self._redis.hset(WRITTEN, key, fate)

    def forget(self, keys: Sequence[bytes]) -> None:
        """See WantedCompositions."""
        if keys:
            with _translated():
                self._redis.hdel(WRITTEN, *keys)

    def _oldest(self) -> tuple[bytes, Mapping[bytes, bytes]] | None:
        found: Any = self._redis.xrange(WANTED, count=1)
        return found[0] if found else None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(
            "REDIS_UNAVAILABLE",
            f"Redis does not say which compositions are wanted ({type(error).__name__}): retry later",
        ) from error
