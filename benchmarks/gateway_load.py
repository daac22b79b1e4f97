"""An open-loop load: requests are sent when they are due, whatever became of those before.

Hand-written HTTP/1.1 over kept connections, for the cores are shared with what is measured.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

_TOKEN = re.compile(rb"tok(\d+)")
DRAIN_SECONDS = 20.0
"""Longest wait for answers after the last request was sent."""

_KEPT_SECONDS = 3.0
"""Servers close connections that are free for 5 s, uvicorn and the gateway with it."""

_EARLY_SECONDS = 0.0006
"""A request may be sent so much early: an event loop's timer wakes to the millisecond."""

Times = Sequence[float]


@dataclass(slots=True, eq=False)
class Sample:
    """A request and what became of it: seconds of the monotonic clock, 0 where it did not come so far.

    ``delays`` are the seconds from when the stub sent a token to when it was received. ``status`` is 0 if
    the connection broke.
    """

    due: float
    sent: float = 0.0
    first: float = 0.0
    done: float = 0.0
    status: int = 0
    delays: list[float] = field(default_factory=list)

    @property
    def latency(self) -> float:
        """Seconds from sending to the whole answer."""
        return self.done - self.sent

    @property
    def waited(self) -> float:
        """Seconds from when it was due to the whole answer: what a late sender hides is in it."""
        return self.done - min(self.due, self.sent)


@dataclass(frozen=True, slots=True)
class Planned:
    """A request to send ``at`` seconds after the beginning, to where and under which name it is kept."""

    at: float
    arm: str
    target: Target
    request: bytes


class Target:
    """A server's address, the key to be sent there, and the connections to it that are free."""

    def __init__(self, port: int, key: str = "") -> None:
        self.port = port
        self._key = f"\r\nauthorization: Bearer {key}\r\n".encode() if key else b"\r\n"
        self._idle: list[_Connection] = []

    async def warm(self, connections: int) -> None:
        """Opens connections ahead."""
        self._idle += [await self._opened() for _ in range(connections)]

    def send(self, request: bytes, sample: Sample) -> asyncio.Future[None]:
        """Sends a request on a free connection, or on a new one; the future is done when the answer is."""
        request = request.replace(b"\r\n", self._key, 1)
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection.send(request, sample)
            connection.close()
        return asyncio.ensure_future(self._send_on_new(request, sample))

    def close(self) -> None:
        """Closes what is free."""
        while self._idle:
            self._idle.pop().close()

    async def _send_on_new(self, request: bytes, sample: Sample) -> None:
        sample.sent = time.monotonic()
        connection = await self._opened()
        sent = sample.sent
        answered = connection.send(request, sample)
        sample.sent = sent
        await answered

    async def _opened(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: _Connection(self._idle), "127.0.0.1", self.port)
        return made


class _Connection(asyncio.Protocol):
    def __init__(self, idle: list[_Connection]) -> None:
        self.is_open = False
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._out: Any = None
        self._sample: Sample | None = None
        self._answered: asyncio.Future[None] | None = None
        self._received = b""
        self._length = -1
        self._body_at = -1
        self._free_since = time.monotonic()

    def is_usable(self) -> bool:
        """Whether the server has not closed it, and is not about to."""
        return self.is_open and time.monotonic() - self._free_since < _KEPT_SECONDS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._out = transport
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._sample is not None:
            self._sample.status = 0
            self._end(self._sample)

    def close(self) -> None:
        self._out.close()

    def send(self, request: bytes, sample: Sample) -> asyncio.Future[None]:
        self._received, self._body_at, self._length = b"", -1, -1
        self._sample = sample
        self._answered = self._loop.create_future()
        sample.sent = time.monotonic()
        self._out.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        sample = self._sample
        if sample is None:
            return
        self._received += data
        if self._body_at < 0 and not self._read_head(sample):
            return
        if self._length >= 0:
            if len(self._received) >= self._body_at + self._length:
                self._end(sample)
            return
        self._note_tokens(sample)
        if self._received.endswith(b"0\r\n\r\n"):
            self._end(sample)

    def _read_head(self, sample: Sample) -> bool:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._received[:end].lower()
        sample.status = int(head[9:12])
        self._body_at = end + 4
        place = head.find(b"content-length:")
        if place >= 0:
            self._length = int(head[place + 15 :].split(b"\r\n", 1)[0])
        return True

    def _note_tokens(self, sample: Sample) -> None:
        """Notes when tokens came. What is complete is let go of, for streams are long."""
        now = time.monotonic()
        whole = self._received.rfind(b"\n\n") + 2
        if whole < 2:
            return
        found = _TOKEN.findall(self._received, 0, whole)
        if found and not sample.first:
            sample.first = now
        sample.delays += [now - int(sent) / 1e6 for sent in found]
        self._received = self._received[whole:]

    def _end(self, sample: Sample) -> None:
        sample.done = time.monotonic()
        self._sample = None
        self._free_since = sample.done
        if self.is_open:
            self._idle.append(self)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)


def post(path: str, body: object) -> bytes:
    """Returns the bytes of a request with a JSON body."""
    content = orjson.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"accept: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def evenly(rate: float, seconds: float, begin: float = 0.0) -> list[float]:
    """Returns the times of evenly spaced requests, ``rate`` a second, from ``begin`` on."""
    return [begin + number / rate for number in range(round(rate * seconds))]


async def play(plan: Iterable[Planned], drain_seconds: float = DRAIN_SECONDS) -> dict[str, list[Sample]]:
    """Sends each request when it is due and returns what became of them by arm, in order."""
    found: dict[str, list[Sample]] = {}
    answers: list[asyncio.Future[None]] = []
    start = time.monotonic() + 0.05
    for planned in sorted(plan, key=lambda each: each.at):
        due = start + planned.at
        await _until(due)
        sample = Sample(due)
        found.setdefault(planned.arm, []).append(sample)
        answers.append(planned.target.send(planned.request, sample))
    if answers:
        await asyncio.wait(answers, timeout=drain_seconds)
    return found


async def _until(due: float) -> None:
    # timers wake up to a millisecond early, too, so once more may be needed
    for _ in range(3):
        wait = due - time.monotonic()
        if wait <= _EARLY_SECONDS:
            return
        await asyncio.sleep(wait)


def quantiles(seconds: Times, levels: Sequence[int] = (50, 99)) -> dict[str, float]:
    """Returns quantiles in milliseconds."""
    return {f"p{level}": round(1e3 * float(np.percentile(seconds, level)), 3) for level in levels}


def differences(ours: Times, theirs: Times) -> list[float]:
    """Returns by how much each of ``ours`` took longer than its neighbour in ``theirs``."""
    return [a - b for a, b in zip(ours, theirs, strict=True)]
