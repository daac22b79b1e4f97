"""The routers' decisions as streams in Redis, shared out among workers by a consumer group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.exceptions import RedisError, ResponseError

from lorauter.decisions import GROUP, stream_of
from lorauter.errors import Unavailable
from lorauter_worker.ports import Entry

CLAIM_SECONDS = 30.0
"""After that long, what a consumer took and did not finish goes to another."""

_CONSUMER = "worker"
_SECONDS = 2.0


class RedisDecisionStream:
    """A DecisionStream. All workers are one consumer: the group keeps apart what each of them was given."""

    def __init__(self, redis_url: str, claim_seconds: float = CLAIM_SECONDS) -> None:
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS
        )
        self._claim_ms = int(1000 * claim_seconds)

    def take(self, tenant: str, count: int) -> list[Entry]:
        """See DecisionStream."""
        stream = stream_of(tenant)
        with _translated():
            try:
                return self._take(stream, count)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self._make_group(stream)
                return self._take(stream, count)

    def finish(self, tenant: str, ids: Sequence[str]) -> None:
        """See DecisionStream."""
        if not ids:
            return
        stream = stream_of(tenant)
        with _translated(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.xack(stream, GROUP, *ids)
            pipeline.xdel(stream, *ids)
            pipeline.execute()

    def _take(self, stream: str, count: int) -> list[Entry]:
        claimed: Any = self._redis.xautoclaim(stream, GROUP, _CONSUMER, self._claim_ms, count=count)
        entries = list(claimed[1])
        if len(entries) < count:
            fresh: Any = self._redis.xreadgroup(GROUP, _CONSUMER, {stream: ">"}, count=count - len(entries))
            entries += [entry for _, found in fresh for entry in found]
        return [(identity.decode(), fields) for identity, fields in entries]

    def _make_group(self, stream: str) -> None:
        try:
            self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(
            "REDIS_UNAVAILABLE", f"Redis does not give out decisions ({type(error).__name__}): retry later"
        ) from error
