"""Encodes queries on one thread, whatever waits together as one batch, and remembers their vectors."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lorauter.encoder import Encoder
from lorauter.errors import Exhausted
from lorauter.routing.model import Vector
from lorauter_router import metrics
from lorauter_router.ports import Encoded


@dataclass(eq=False, slots=True)
class _Waiting:
    text: str
    done: asyncio.Future[Vector]
    callers: int = field(default=0)


class BatchingEncoder:
    """A QueryEncoder. Belongs to one event loop; the encoder itself runs on a thread of its own.

    While a batch runs, new queries queue; the next batch takes up to ``batch`` of them. A text that
    already waits is encoded once for all who asked. Queries whose callers are gone are dropped. Vectors of
    the last ``cache_size`` texts are kept by the texts' hash, so no text is.
    """

    def __init__(self, encoder: Encoder, batch: int, queue: int, cache_size: int) -> None:
        self._encoder = encoder
        self._batch = batch
        self._queue_size = queue
        self._cache_size = cache_size
        self._cache: OrderedDict[bytes, Vector] = OrderedDict()
        self._waiting: dict[bytes, _Waiting] = {}
        self._queue: deque[bytes] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._pump: asyncio.Task[None] | None = None

    async def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """See QueryEncoder. Cancelling it leaves nothing behind."""
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        found = {key: self._recall(key) for key in dict.fromkeys(keys)}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if found[key] is None}
        hits = sum(key not in missing for key in keys)
        metrics.CACHE.labels("hit").inc(hits)
        metrics.CACHE.labels("miss").inc(len(keys) - hits)
        if missing:
            found |= await self._encode_missing(missing)
        vectors = [(found[key], key not in missing) for key in keys]
        return [Encoded(vector, cached) for vector, cached in vectors if vector is not None]

    async def close(self) -> None:
        """Stops the thread once the batch that runs has ended; queries that wait are cancelled."""
        if self._pump is not None:
            self._pump.cancel()
        for waiting in self._waiting.values():
            waiting.done.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _recall(self, key: bytes) -> Vector | None:
        vector = self._cache.get(key)
        if vector is not None:
            self._cache.move_to_end(key)
        return vector

    async def _encode_missing(self, missing: dict[bytes, str]) -> dict[bytes, Vector]:
        new = [key for key in missing if key not in self._waiting]
        if len(self._queue) + len(new) > self._queue_size:
            raise Exhausted(
                "ENCODER_BUSY",
                f"{len(self._queue)} queries wait to be encoded already: retry later, or ask another router",
            )
        loop = asyncio.get_running_loop()
        for key in new:
            self._waiting[key] = _Waiting(missing[key], loop.create_future())
            self._queue.append(key)
        metrics.QUEUE.set(len(self._queue))
        waiting = {key: self._waiting[key] for key in missing}
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run())
        for item in waiting.values():
            item.callers += 1
        try:
            vectors = await asyncio.gather(*(asyncio.shield(item.done) for item in waiting.values()))
        finally:
            for item in waiting.values():
                item.callers -= 1
        return dict(zip(waiting, vectors, strict=True))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            items = [self._waiting[key] for key in batch]
            try:
                vectors = await loop.run_in_executor(
                    self._thread, self._encoder.encode, [item.text for item in items]
                )
            except Exception as error:
                for key, item in zip(batch, items, strict=True):
                    del self._waiting[key]
                    item.done.set_exception(error)
                    item.done.exception()
                continue
            metrics.BATCH.observe(len(batch))
            for key, item, vector in zip(batch, items, vectors, strict=True):
                del self._waiting[key]
                kept = vector.copy()
                kept.setflags(write=False)
                self._remember(key, kept)
                item.done.set_result(kept)

    def _next_batch(self) -> list[bytes]:
        batch: list[bytes] = []
        while self._queue and len(batch) < self._batch:
            key = self._queue.popleft()
            if self._waiting[key].callers:
                batch.append(key)
            else:
                self._waiting.pop(key).done.cancel()
        metrics.QUEUE.set(len(self._queue))
        return batch

    def _remember(self, key: bytes, vector: Vector) -> None:
        self._cache[key] = vector
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
