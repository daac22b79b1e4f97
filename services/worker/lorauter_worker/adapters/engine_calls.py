"""Bulk calls to engines in which whatever is wrong stays with the adapter or the question that it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorauter.errors import Unavailable
from lorauter_worker.adapters.replicas import (
    Call,
    Failure,
    Replicas,
    Reply,
    Trouble,
    fault_of,
    protocol_error,
)
from lorauter_worker.ports import Fault, Refused

MAX_ITEMS = 1024
"""Most items that an engine takes in one call."""

LEAST_ITEMS = 64
"""A batch is shared out among replicas in calls of at least this many items."""

FIRST_LIMIT = 0.5
"""Share of the time for a batch that its calls have; halves of a call that is late have half of it."""

LEAST_LIMIT = 0.04
"""The least that a call has, however small."""

Outcome = Mapping[str, Any] | Refused | None
"""The engine's answer to a question; None if not even the base can take the question."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Places of questions that go into one call, which may take ``limit`` seconds."""

    places: tuple[int, ...]
    limit: float


class EngineCalls:
    """Has engines answer questions; remembers which adapters they refuse.

    The engine tells item by item what is wrong with an adapter or a question. Where a whole call fails
    or is late, halves of it find the adapter, and the base tells whether it is the adapter's fault.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._refused: dict[str, Refused] = {}

    def ask(
        self, path: str, adapters: Sequence[str], items: Sequence[Mapping[str, Any]], **shared: Any
    ) -> list[Outcome]:
        """Posts ``items`` that lack their adapters, which are these; returns what came of each.

        An item of a weighted set has its ``adapters``; what is refused is the set, by its name among these.
        ``shared`` goes into every call. Raises Unavailable, FailedPrecondition (BACKEND_REFUSED).
        """
        return _Batch(self._replicas, self._refused, path, adapters, items, shared).outcomes()


class _Batch:
    """One ask()."""

    def __init__(
        self,
        replicas: Replicas,
        refused: dict[str, Refused],
        path: str,
        adapters: Sequence[str],
        items: Sequence[Mapping[str, Any]],
        shared: Mapping[str, Any],
    ) -> None:
        self._replicas = replicas
        self._refused = refused
        self._path = path
        self._adapters = adapters
        self._asked = items
        self._shared = shared
        self._answers: list[Mapping[str, Any] | None] = [None] * len(items)

    def outcomes(self) -> list[Outcome]:
        """Asks until every place has an answer, a refusal, or nobody who can answer."""
        waiting = self._first_chunks()
        while waiting:
            replies = self._replicas.map([self._call(chunk) for chunk in waiting])
            again: list[_Chunk] = []
            for chunk, reply in zip(waiting, replies, strict=True):
                again += self._read(chunk, reply)
            waiting = [left for chunk in again if (left := self._without_refused(chunk)).places]
        return [self._refused.get(*pair) for pair in zip(self._adapters, self._answers, strict=True)]

    def _first_chunks(self) -> list[_Chunk]:
        limit = FIRST_LIMIT * self._replicas.timeout_seconds
        places = self._without_refused(_Chunk(tuple(range(len(self._adapters))), limit)).places
        fair = -(-len(places) // len(self._replicas.urls))
        size = min(MAX_ITEMS, max(LEAST_ITEMS, fair))
        return [_Chunk(places[start : start + size], limit) for start in range(0, len(places), size)]

    def _without_refused(self, chunk: _Chunk) -> _Chunk:
        return replace(
            chunk, places=tuple(place for place in chunk.places if self._adapters[place] not in self._refused)
        )

    def _call(self, chunk: _Chunk, by_base: bool = False) -> Call:
        is_of_base = by_base or not any(self._adapters[place] for place in chunk.places)
        probe = None
        if len(chunk.places) > 1 or not is_of_base:
            probe = Call(self._path, self._body(chunk.places[:1], True), chunk.limit / 2)
        return Call(self._path, self._body(chunk.places, by_base), chunk.limit, probe)

    def _body(self, places: Sequence[int], by_base: bool) -> dict[str, Any]:
        items = [self._item(place, by_base) for place in places]
        return {**self._shared, "items": items, "partial": True}

    def _item(self, place: int, by_base: bool) -> dict[str, Any]:
        adapter = self._adapters[place]
        alone = [{"id": adapter, "weight": 1.0}] if adapter else []
        asked = self._asked[place]
        return {**asked, "adapters": [] if by_base else asked.get("adapters", alone)}

    def _read(self, chunk: _Chunk, reply: Reply) -> list[_Chunk]:
        """Takes what a call brought; returns what is to be asked again."""
        if isinstance(reply, Failure):
            return self._isolate(chunk, reply)
        busy: list[int] = []
        odd: list[int] = []
        for place, item in zip(chunk.places, self._items(chunk, reply), strict=True):
            fault, adapter = item.get("fault"), self._adapters[place]
            if fault is None:
                self._answers[place] = item
            elif fault == "busy":
                busy.append(place)
            elif fault == "output":
                odd.append(place)
            elif fault == "adapter" and adapter:
                is_odd = item.get("reason") == "ADAPTER_NOT_FINITE"
                kind = Fault.NOT_FINITE if is_odd else Fault.DOES_NOT_LOAD
                self._refuse(adapter, kind, str(item.get("error")))
        self._judge_odd(replace(chunk, places=tuple(place for place in odd if self._adapters[place])))
        return [replace(chunk, places=tuple(busy))] if busy else []

    def _items(self, chunk: _Chunk, reply: Mapping[str, Any]) -> list[dict[str, Any]]:
        items, urls = reply.get("items"), ", ".join(self._replicas.urls)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise protocol_error(urls, "answered 200 without items")
        if len(items) != len(chunk.places):
            raise protocol_error(urls, "answered with another number of items than it was asked")
        return items

    def _judge_odd(self, chunk: _Chunk) -> None:
        """Refuses adapters whose output is not finite where the base's is."""
        if not chunk.places:
            return
        (reply,) = self._replicas.map([self._call(chunk, by_base=True)])
        if isinstance(reply, Failure):
            raise _away(reply)
        for place, item in zip(chunk.places, self._items(chunk, reply), strict=True):
            if item.get("fault") is None:
                said = "its output is not finite, where the base's is"
                self._refuse(self._adapters[place], Fault.NOT_FINITE, said)

    def _isolate(self, chunk: _Chunk, failure: Failure) -> list[_Chunk]:
        """Splits a call that failed as a whole; finds who is at fault once it is of one adapter."""
        places = sorted(chunk.places, key=lambda place: self._adapters[place])
        adapters = [self._adapters[place] for place in places]
        borders = [at for at in range(1, len(places)) if adapters[at] != adapters[at - 1]]
        if adapters[0] and not borders and self._is_answered_by_base(chunk):
            return self._ask_again(chunk)
        if len(places) == 1:
            if failure.trouble in (Trouble.TIMED_OUT, Trouble.FAILED):
                raise _away(failure)
            return []
        middle = len(places) // 2
        half = min(borders, key=lambda border: abs(border - middle)) if borders else middle
        limit = max(chunk.limit / 2, LEAST_LIMIT * self._replicas.timeout_seconds)
        return [_Chunk(tuple(part), limit) for part in (places[:half], places[half:])]

    def _is_answered_by_base(self, chunk: _Chunk) -> bool:
        (reply,) = self._replicas.map([self._call(chunk, by_base=True)])
        return not isinstance(reply, Failure)

    def _ask_again(self, chunk: _Chunk) -> list[_Chunk]:
        """Refuses an adapter that fails once more at what the base has just answered."""
        (reply,) = self._replicas.map([self._call(chunk)])
        if not isinstance(reply, Failure):
            return self._read(chunk, reply)
        said = f"{reply.detail}; the base answers the same questions"
        self._refuse(self._adapters[chunk.places[0]], fault_of(reply), said)
        return []

    def _refuse(self, adapter: str, fault: Fault, detail: str) -> None:
        self._refused.setdefault(adapter, Refused(fault, detail))


def _away(failure: Failure) -> Unavailable:
    return Unavailable(
        "BACKEND_UNAVAILABLE",
        f"the base does not answer a single question: {failure.detail}; allow more time or look at its log",
    )
