"""Encodes queries on one thread, like lengths that wait together as a batch, and remembers their vectors."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from lorauter.encoder import Encoder
from lorauter.errors import Exhausted
from lorauter.routing.model import Vector
from lorauter_router import metrics
from lorauter_router.ports import Encoded

_READ_CHARACTERS = 1_200
"""About what an encoder reads of a text; longer ones take no longer."""

_BATCH_CHARACTERS = 1_000
"""Most characters of a batch of several texts: it takes no longer than one long text, and larger ones gain
nothing."""

_ALIKE_CHARACTERS = 40
_ALIKE_SHARE = 0.25
"""Difference in length, whichever is more, up to which padding costs less than a batch of its own."""


@dataclass(eq=False, slots=True)
class _Call:
    """A caller, and how many of the texts it waits for are still to be encoded."""

    missing: int
    done: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Waiting:
    """A text, who waits for it, and at last its vector."""

    key: bytes
    text: str
    calls: list[_Call] = field(default_factory=list)
    vector: Vector | None = None


class BatchingEncoder:
    """A QueryEncoder. Belongs to one event loop; the encoder itself runs on a thread of its own.

    While a batch runs, new queries queue; the next batch is the one that has waited longest with up to
    ``batch`` in all of like length, so that nobody waits for texts that are much longer, nor for ever. A text
    that already waits is encoded once for all of a tenant who asked. Queries whose callers are gone are
    dropped. Vectors of the last ``cache_size`` texts are kept by a hash of tenant and text, so no text is,
    and nobody learns from an answer's timings whether another tenant asked the same.
    """

    def __init__(self, encoder: Encoder, batch: int, queue: int, cache_size: int) -> None:
        self._encoder = encoder
        self._batch = batch
        self._queue_size = queue
        self._cache_size = cache_size
        self._cache: OrderedDict[bytes, Vector] = OrderedDict()
        self._waiting: dict[bytes, _Waiting] = {}
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        """Guards the queue, which the thread takes from; all else belongs to the event loop."""
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def encode(self, texts: Sequence[str], tenant: str) -> list[Encoded]:
        """See QueryEncoder. Cancelling it leaves nothing behind."""
        whose = hashlib.blake2b(f"{tenant}\n".encode(), digest_size=16)
        keys = [_key(whose, text) for text in texts]
        found = {key: self._recall(key) for key in dict.fromkeys(keys)}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if found[key] is None}
        hits = sum(key not in missing for key in keys)
        if hits:
            metrics.CACHE.labels("hit").inc(hits)
        if missing:
            metrics.CACHE.labels("miss").inc(len(keys) - hits)
            found |= await self._encode_missing(missing)
        vectors = [(found[key], key not in missing) for key in keys]
        return [Encoded(vector, cached) for vector, cached in vectors if vector is not None]

    async def close(self) -> None:
        """Stops the thread once the batch that runs has ended; queries that wait are cancelled."""
        with self._changed:
            self._is_closed = True
            self._queue.clear()
            self._changed.notify()
        for waiting in self._waiting.values():
            for call in waiting.calls:
                call.done.cancel()

    def _recall(self, key: bytes) -> Vector | None:
        vector = self._cache.get(key)
        if vector is not None:
            self._cache.move_to_end(key)
        return vector

    async def _encode_missing(self, missing: dict[bytes, str]) -> dict[bytes, Vector | None]:
        self._start()
        call = _Call(len(missing), asyncio.get_running_loop().create_future())
        new = [_Waiting(key, text) for key, text in missing.items() if key not in self._waiting]
        with self._changed:
            if len(self._queue) + len(new) > self._queue_size:
                raise Exhausted(
                    "ENCODER_BUSY",
                    f"{len(self._queue)} queries wait to be encoded already: retry later, or ask another "
                    "router",
                )
            self._queue.extend(new)
            metrics.QUEUE.set(len(self._queue))
            self._changed.notify()
        self._waiting |= {waiting.key: waiting for waiting in new}
        awaited = [self._waiting[key] for key in missing]
        for waiting in awaited:
            waiting.calls.append(call)
        try:
            await call.done
        finally:
            if call.missing:
                self._leave(call, awaited)
        return {waiting.key: waiting.vector for waiting in awaited}

    def _leave(self, call: _Call, awaited: Iterable[_Waiting]) -> None:
        """Takes a caller that is gone out, and off the queue what nobody waits for any more."""
        for waiting in awaited:
            if call in waiting.calls:
                waiting.calls.remove(call)
            if waiting.calls:
                continue
            with self._changed, suppress(ValueError):  # it is not in the queue while it is encoded
                self._queue.remove(waiting)
                self._waiting.pop(waiting.key, None)

    def _start(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._work, args=(self._loop,), name="encoder", daemon=True).start()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while batch := self._next_batch():
            try:
                vectors: Sequence[Vector] | Exception = list(
                    self._encoder.encode([waiting.text for waiting in batch])
                )
            except Exception as error:
                vectors = error
            with suppress(RuntimeError):  # the loop ended while the batch ran
                loop.call_soon_threadsafe(self._deliver, batch, vectors)

    def _next_batch(self) -> list[_Waiting]:
        """Waits for queries; returns none once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closed)
            places = alike([len(waiting.text) for waiting in self._queue], self._batch)
            batch = [self._queue[place] for place in places]
            for place in reversed(places):
                del self._queue[place]
            metrics.QUEUE.set(len(self._queue))
        return batch

    def _deliver(self, batch: Sequence[_Waiting], vectors: Sequence[Vector] | Exception) -> None:
        metrics.BATCH.observe(len(batch))
        for place, waiting in enumerate(batch):
            self._waiting.pop(waiting.key, None)
            if isinstance(vectors, Exception):
                for call in waiting.calls:
                    if not call.done.done():
                        call.done.set_exception(vectors)
                continue
            waiting.vector = vectors[place].copy()
            waiting.vector.setflags(write=False)
            self._remember(waiting.key, waiting.vector)
            for call in waiting.calls:
                call.missing -= 1
                if not call.missing and not call.done.done():
                    call.done.set_result(None)

    def _remember(self, key: bytes, vector: Vector) -> None:
        self._cache[key] = vector
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)


def _key(whose: hashlib.blake2b, text: str) -> bytes:
    hashed = whose.copy()
    hashed.update(text.encode())
    return hashed.digest()


def alike(lengths: Sequence[int], most: int) -> list[int]:
    """Returns which texts to encode next, by their lengths in characters, oldest first: places, ascending.

    The oldest one, and as many that are about as long as ``most`` and the size of a batch allow.
    """
    read = [min(length, _READ_CHARACTERS) for length in lengths]
    chosen = [0] if read else []
    room = _BATCH_CHARACTERS - sum(read[:1])
    for place in range(1, len(read)):
        if len(chosen) == most or room <= 0:
            break
        if (
            abs(read[place] - read[0]) <= max(_ALIKE_CHARACTERS, _ALIKE_SHARE * read[0])
            and read[place] <= room
        ):
            chosen.append(place)
            room -= read[place]
    return chosen
