"""Appends decisions to the bounded Redis stream of the tenant that asked, on a task beside the routes."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from itertools import islice

from redis.asyncio import Redis
from redis.exceptions import RedisError

from lorauter.decisions import (
    MOST_TERMS_BYTES,
    MOST_TEXT_BYTES,
    Detail,
    RecordedArm,
    RecordedDecision,
    RecordedOptions,
    RecordedTask,
    stream_of,
)
from lorauter.routing.replaying import pack_terms, pack_vector
from lorauter.telemetry import get_logger
from lorauter_router import metrics
from lorauter_router.ports import Made

_log = get_logger(__name__)

_BATCH = 32
_ENCODED_AT_ONCE = 8
_GATHER_SECONDS = 0.05
_RETRY_SECONDS = 0.5
_CLOSE_SECONDS = 1.0
_REDIS_SECONDS = 2.0


class NoDecisionLog:
    """A DecisionLog that keeps nothing."""

    keeps_features = False

    def record(self, made: Made) -> None:
        """See DecisionLog."""

    async def close(self) -> None:
        """Does nothing."""


class RedisDecisionLog:
    """A DecisionLog. Belongs to one event loop.

    Decisions wait in memory until Redis takes them, at most ``queue`` of them; what comes while that is full
    is dropped and counted. Each stream keeps about the ``length`` newest that no worker has stored yet.
    """

    def __init__(self, url: str, detail: Detail, queue: int, length: int) -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
        )
        self._detail = detail
        self._most = queue
        self._length = length
        self._made: deque[Made] = deque()
        self._entries: deque[tuple[str, dict[str, bytes]]] = deque()
        """Streams, and what goes into them."""
        self._some = asyncio.Event()
        self._is_away = self._is_closing = False
        self._task = asyncio.create_task(self._run())
        self.keeps_features = detail in ("features", "text")

    def record(self, made: Made) -> None:
        """See DecisionLog."""
        if len(self._made) + len(self._entries) >= self._most:
            metrics.DECISION_LOG.labels("dropped").inc()
            return
        self._made.append(made)
        self._some.set()

    async def close(self) -> None:
        """Gives what waits a second to arrive, drops the rest, and disconnects."""
        self._is_closing = True
        self._some.set()
        await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        self._task.cancel()
        metrics.DECISION_LOG.labels("dropped").inc(len(self._made) + len(self._entries))
        await self._redis.aclose()

    async def _run(self) -> None:
        while not self._is_closing or self._made or self._entries:
            await self._some.wait()
            if len(self._made) < _BATCH and not self._is_closing:
                await asyncio.sleep(_GATHER_SECONDS)  # one call for many costs routes the least
            while self._made:
                for made in [self._made.popleft() for _ in range(min(_ENCODED_AT_ONCE, len(self._made)))]:
                    self._encode(made)
                await asyncio.sleep(0)  # routes have their turn
            if self._entries:
                await self._send(list(islice(self._entries, _BATCH)))
            elif not self._made:
                self._some.clear()

    def _encode(self, made: Made) -> None:
        """Makes an entry at once, even without Redis: what was made holds on to a whole snapshot."""
        try:
            entry = recorded(made, self._detail).entry()
            self._entries.append((stream_of(made.tenant), entry))
        except Exception:  # a decision that cannot be recorded must not end the log
            metrics.DECISION_LOG.labels("dropped").inc()
            _log.exception("router.decisions.failed")

    async def _send(self, batch: list[tuple[str, dict[str, bytes]]]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for stream, entry in batch:
            pipeline.xadd(stream, entry, maxlen=self._length, approximate=True)  # type: ignore[arg-type]
        try:
            await pipeline.execute()
        except (RedisError, OSError) as error:
            if not self._is_away:
                _log.warning("router.decisions.redis_away", error=type(error).__name__)
            self._is_away = True
            await asyncio.sleep(_RETRY_SECONDS)
            return
        self._is_away = False
        for _ in batch:
            self._entries.popleft()
        metrics.DECISION_LOG.labels("recorded").inc(len(batch))


def recorded(made: Made, detail: Detail) -> RecordedDecision:
    """Returns what ``detail`` says is kept of a decision.

    Callers' words are kept in ``text`` alone: ids and tags that the pool does not have are left out.
    """
    decision, pool, options = made.decision, made.pool, made.options
    terms = b"" if made.terms is None else pack_terms(made.terms, pool.lexicon)
    has_features = detail in ("features", "text") and len(terms) <= MOST_TERMS_BYTES
    text = made.text.encode()
    return RecordedDecision(
        id=made.decision_id,
        time_ms=made.time_ms,
        pool_tenant=made.pool_tenant,
        pool=pool.pool_id,
        strategy=decision.strategy,
        generation=made.generation,
        profile_digest=pool.profile.digest,
        encoder_digest=made.encoder_digest,
        stale=made.stale,
        action=decision.action.value,
        best_adapter=decision.best_single.adapter_id,
        best_version=decision.best_single.version,
        expected_utility=decision.expected_utility,
        typicality=decision.typicality,
        adapters=tuple(
            RecordedArm(adapter_id=item.arm.adapter_id, version=item.arm.version, weight=item.weight)
            for item in decision.adapters
        ),
        tasks=tuple(
            RecordedTask(task_id=match.task_id, similarity=match.similarity, probability=match.probability)
            for match in decision.tasks
        ),
        options=RecordedOptions(
            max_adapters=options.max_adapters,
            tags=tuple(sorted({tag if tag in pool.carriers else "" for tag in options.tags})),
            exclude_tasks=tuple(sorted(options.exclude_tasks & pool.task_rows.keys())),
            exclude_adapters=tuple(sorted(options.exclude_adapters & pool.arm_rows.keys())),
        ),
        text_digest=hashlib.blake2b(text, digest_size=16).hexdigest(),
        vector=pack_vector(made.vector) if has_features else b"",
        terms=terms if has_features else b"",
        text=text[:MOST_TEXT_BYTES].decode(errors="ignore") if detail == "text" else "",
    )
