"""Holds callers to what their keys may use in a minute, at no cost to those without limits."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Any

from lorauter.access import Caller
from lorauter.errors import InvalidArgument, LorauterError, NotFound, Unavailable
from lorauter.telemetry import get_logger
from lorauter_gateway import metrics
from lorauter_gateway.domain.model import Generation
from lorauter_gateway.domain.quota import UNCHECKED, Taken, answer_estimate, prompt_estimate, too_large
from lorauter_gateway.ports import BooksAway, QuotaBooks

_log = get_logger(__name__)

_HELD_SECONDS = 1.0
"""Longest that a key whose requests are used up is refused without asking the books."""
_MOST_HELD = 10_000
_CLOSE_SECONDS = 1.0

_CALLERS_FAULT = (InvalidArgument, NotFound)
"""Errors that count as a request all the same: whoever sends them must not do so without end."""


class Charge:
    """What a request has taken. end() gives back what it did not use, once, beside whatever runs."""

    def __init__(
        self, quotas: Quotas, caller: Caller, taken: Taken | None, prompt_tokens: int, tokens: int
    ) -> None:
        """``taken`` None: the books are away, and nothing was checked."""
        self._quotas = quotas
        self._caller = caller
        self._taken = taken
        self._prompt_tokens = prompt_tokens
        self._tokens = tokens
        self._is_open = taken is not None

    def headers(self) -> dict[str, str]:
        """Returns what the answer says of the key's limits."""
        return {UNCHECKED: "unchecked"} if self._taken is None else self._taken.headers()

    def end(self, error: BaseException | None, used: int | None, pieces: int) -> None:
        """Settles what a request took against what it ``used`` in tokens, None where that was not told.

        An answer that broke off counts its prompt and the ``pieces`` that came. Where none did, an error
        gives all back, but for the request where the caller is at fault; a caller who went away pays what was
        reserved, for a backend may have worked all the while.
        """
        if not self._is_open:
            return
        self._is_open = False
        if used is None and pieces:
            used = self._prompt_tokens + pieces
        requests = 0
        if used is None:
            if not isinstance(error, LorauterError):
                return
            used = 0
            requests = 0 if isinstance(error, _CALLERS_FAULT) else -1
        tokens = used - self._tokens if self._caller.tokens_per_minute else 0
        if requests or tokens:
            self._quotas.correct(self._caller, requests, tokens)


class Quotas:
    """``books`` None: there are none, as where they are away. ``allows_unchecked``: what is done then."""

    def __init__(
        self, books: QuotaBooks | None, allows_unchecked: bool, clock: Callable[[], float] = monotonic
    ) -> None:
        self._books = books
        self._allows_unchecked = allows_unchecked
        self._clock = clock
        self._held: OrderedDict[str, tuple[float, Taken]] = OrderedDict()
        self._beside: set[asyncio.Task[Any]] = set()

    def check(self, caller: Caller) -> None:
        """Raises Exhausted (QUOTA_EXCEEDED) where the books said a moment ago that no request is left."""
        if not self._held or not caller.requests_per_minute:
            return
        until, taken = self._held.get(caller.key_id, (0.0, None))
        if taken is not None and self._clock() < until:
            raise self._refused(taken)

    def begin(self, caller: Caller, generation: Generation | None) -> asyncio.Task[Charge] | None:
        """Begins to take what a request needs; returns None where nothing limits the key.

        ``generation`` None: it asks for a decision only.

        The task raises Exhausted (QUOTA_EXCEEDED), Unavailable (QUOTA_UNAVAILABLE).
        """
        if not (caller.requests_per_minute or caller.tokens_per_minute):
            return None
        prompt = prompt_estimate(generation) if generation else 0
        tokens = prompt + answer_estimate(generation) if generation else 0
        return asyncio.create_task(self._take(caller, prompt, tokens))

    async def _take(self, caller: Caller, prompt: int, tokens: int) -> Charge:
        self.check(caller)
        if caller.tokens_per_minute and tokens > caller.tokens_per_minute:
            metrics.QUOTA_REFUSED.inc()
            raise too_large(tokens, caller.tokens_per_minute)
        try:
            if self._books is None:
                raise BooksAway
            taken = await self._books.take(caller, tokens)
        except BooksAway:
            return self._unchecked(caller)
        if taken.wait_seconds <= 0:
            return Charge(self, caller, taken, prompt, tokens)
        if taken.is_full:
            self._hold(caller.key_id, taken)
        raise self._refused(taken)

    def _unchecked(self, caller: Caller) -> Charge:
        metrics.QUOTA_UNCHECKED.labels("allowed" if self._allows_unchecked else "refused").inc()
        if not self._allows_unchecked:
            raise Unavailable(
                "QUOTA_UNAVAILABLE",
                "Redis, which counts what keys with limits use, is away: retry in a moment",
                retry_after_seconds="1",
            )
        return Charge(self, caller, None, 0, 0)

    def _hold(self, key_id: str, taken: Taken) -> None:
        self._held[key_id] = (self._clock() + min(taken.wait_seconds, _HELD_SECONDS), taken)
        self._held.move_to_end(key_id)
        while len(self._held) > _MOST_HELD:
            self._held.popitem(last=False)

    def _refused(self, taken: Taken) -> LorauterError:
        metrics.QUOTA_REFUSED.inc()
        return taken.refusal()

    def correct(self, caller: Caller, requests: int, tokens: int) -> None:
        """Adds to what a key has used, beside whatever runs."""
        if requests < 0:
            self._held.pop(caller.key_id, None)
        task = asyncio.get_running_loop().create_task(self._correct(caller, requests, tokens))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _correct(self, caller: Caller, requests: int, tokens: int) -> None:
        assert self._books is not None
        try:
            await self._books.correct(caller, requests, tokens)
        except BooksAway:
            # what was reserved drains within a minute by itself
            _log.info("gateway.quota.not_corrected", key_id=caller.key_id)

    async def close(self) -> None:
        """Waits a moment for what is still being settled."""
        if self._beside:
            await asyncio.wait(self._beside, timeout=_CLOSE_SECONDS)
