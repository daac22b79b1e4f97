"""What tests can have a server do wrong, and the record that it keeps of what it was asked."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.protocol_servers.models import ModelFailed, Token

_REQUEST_ID = re.compile(r"#([0-9a-z-]+)#")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong. ``count``: only with so many generations; None: until other faults are set.

    ``stall_after``, ``cut_after`` and ``error_after`` count tokens. ``text`` is what every token says
    instead. ``packed``: the answer is 32 MiB that gzip makes small. ``is_healthy``, ``load_status`` and
    ``load_seconds`` hold until other faults are set.
    """

    delay_seconds: float = 0.0
    token_seconds: float = 0.0
    stall_after: int | None = None
    cut_after: int | None = None
    error_after: int | None = None
    status: int | None = None
    garbage: bool = False
    packed: bool = False
    text: str = ""
    count: int | None = None
    is_healthy: bool = True
    load_status: int | None = None
    load_seconds: float = 0.0


class Faults:
    """The faults of the moment."""

    def __init__(self, usual: Fault) -> None:
        self._usual = usual
        self.now = usual

    def set(self, wanted: Mapping[str, Any]) -> None:
        """Replaces all faults; what is not named is as at the start. Raises TypeError for unknown ones."""
        self.now = replace(self._usual, **wanted)

    def take(self) -> Fault:
        """Returns the fault of the next generation."""
        taken = self.now
        if taken.count == 0:
            return self._usual
        if taken.count is not None:
            self.now = replace(taken, count=taken.count - 1)
        return taken


@dataclass(slots=True)
class Life:
    """How often a request began, had its first token sent, and ended one way or another."""

    begun: int = 0
    first: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


@dataclass
class Ledger:
    """What was asked, by request id: what stands between two # in a prompt, else ``seed-`` and the seed.

    Lines "event id name" go to ``journal`` as they happen, which several servers may share and which
    outlives a killed one.
    """

    journal: Path | None = None
    requests: dict[str, Life] = field(default_factory=dict)
    total: Life = field(default_factory=Life)
    by_name: Counter[str] = field(default_factory=Counter)
    running: int = 0
    most_running: int = 0

    def __post_init__(self) -> None:
        self._file = (
            os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if self.journal else -1
        )

    def note(self, event: str, request_id: str, name: str) -> None:
        """Counts an event of Life's."""
        lives = [self.total]
        if request_id:
            lives.append(self.requests.setdefault(request_id, Life()))
            if self._file >= 0:
                os.write(self._file, f"{event} {request_id} {name or '-'}\n".encode())
        for life in lives:
            setattr(life, event, getattr(life, event) + 1)

    def as_json(self) -> dict[str, Any]:
        """Returns all counts."""
        return {
            **asdict(self.total),
            "running": self.running,
            "most_running": self.most_running,
            "requests": {request_id: asdict(life) for request_id, life in self.requests.items()},
            "by_name": self.by_name,
        }


def request_id_of(body: Mapping[str, Any]) -> str:
    """Returns the id that a request's prompt or seed carries, empty for none."""
    messages = body.get("messages")
    prompt = messages[-1].get("content") if isinstance(messages, list) and messages else None
    text = prompt or body.get("inputs") or body.get("prompt")
    if isinstance(text, str) and (found := _REQUEST_ID.search(text)):
        return found[1]
    parameters = body.get("parameters")
    seed = parameters.get("seed") if isinstance(parameters, dict) else body.get("seed")
    return "" if seed is None else f"seed-{seed}"


class Play:
    """One generation as it goes well or wrong. Use as a context once it has begun."""

    def __init__(self, ledger: Ledger, request: web.Request, fault: Fault, request_id: str) -> None:
        self._ledger = ledger
        self._request = request
        self._fault = fault
        self._id = request_id
        self._name = ""
        self._is_sent = False

    def begun(self, name: str) -> Self:
        """Notes which adapter answers; empty is the base."""
        self._name = name
        return self

    async def __aenter__(self) -> Self:
        ledger = self._ledger
        ledger.note("begun", self._id, self._name)
        ledger.by_name[self._name] += 1
        ledger.running += 1
        ledger.most_running = max(ledger.most_running, ledger.running)
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._ledger.running -= 1
        event = "finished" if error is None else "failed"
        if isinstance(error, asyncio.CancelledError | ConnectionError | GeneratorExit):
            event = "failed" if self._fault.cut_after is not None else "cancelled"
        self._ledger.note(event, self._id, self._name)

    async def tokens(self, source: AsyncGenerator[Token, None]) -> AsyncGenerator[Token, None]:
        """Passes tokens on until something goes wrong."""
        fault = self._fault
        async with aclosing(source):
            await asyncio.sleep(fault.delay_seconds)
            number = 0
            async for token in source:
                await self._go_wrong(number)
                await asyncio.sleep(fault.token_seconds)
                yield replace(token, text=fault.text) if fault.text else token
                number += 1

    async def _go_wrong(self, number: int) -> None:
        fault = self._fault
        if number == fault.stall_after:
            await asyncio.Event().wait()
        if number == fault.error_after:
            raise ModelFailed("CUDA error: an illegal memory access was encountered")
        if number == fault.cut_after:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("cut")

    def sent(self) -> None:
        """Notes, the first time, that a token of the answer was sent."""
        if not self._is_sent:
            self._is_sent = True
            self._ledger.note("first", self._id, self._name)
