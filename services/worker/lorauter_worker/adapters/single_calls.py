"""Questions asked one request each, in which what fails is blamed on the adapter only if the base answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

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
from lorauter_worker.ports import Answer, Fault, Question, Refused

Parsed = TypeVar("Parsed")

_FINAL = (Trouble.REFUSED, Trouble.TOO_LARGE)
"""Troubles that come again however often one asks."""

LIMIT = 0.25
"""Share of the time for a batch that one request may take."""

Request = tuple[str, dict[str, Any]]
"""The path and body of a POST."""


class NotFiniteError(Exception):
    """The log-probabilities of an answer are no numbers."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked: None for one that cannot be; how an answer is read."""

    request: Callable[[Question], Request | None]
    read: Callable[[Question, Mapping[str, Any]], Answer]


@dataclass(frozen=True, slots=True)
class _Trouble:
    fault: Fault
    detail: str
    is_final: bool
    """Whether the question itself may be at fault, rather than the moment."""


class SingleCalls:
    """Asks, and remembers in ``refused`` which adapters fail at what the base answers."""

    def __init__(self, replicas: Replicas) -> None:
        self.refused: dict[str, Refused] = {}
        self._replicas = replicas
        self._limit = LIMIT * replicas.timeout_seconds

    def close(self) -> None:
        """Releases connections."""
        self._replicas.close()

    def post(self, requests: Sequence[Request]) -> list[Reply]:
        """Returns replies to requests that cannot be an adapter's fault. Raises Unavailable as ask() does."""
        replies = self._replicas.map([Call(*request, self._limit) for request in requests])
        for reply in replies:
            if isinstance(reply, Failure) and reply.trouble not in _FINAL:
                raise _away(reply.detail)
        return replies

    def sent(self, requests: Sequence[Request], probe: Request) -> list[Reply]:
        """Returns replies to requests that may be an adapter's fault: ``probe`` is the same to the base."""
        base = Call(*probe, self._limit / 2)
        return self._replicas.map([Call(*request, self._limit, base) for request in requests])

    def ask(self, questions: Mapping[int, Question], asking: Asking) -> dict[int, Answer]:
        """Returns the answers by place. What is left out is refused, or not even the base can take it.

        Raises Unavailable when the base does not answer in time.
        """
        usable = {
            place: question for place, question in questions.items() if question.adapter not in self.refused
        }
        answers, troubles = self._try(usable, asking)
        self._raise_if_base_fails(usable, troubles)
        doubted = {place: usable[place] for place in troubles if usable[place].adapter}
        bare = {place: replace(question, adapter="") for place, question in doubted.items()}
        by_base, base_troubles = self._try(bare, asking)
        self._raise_if_base_fails(bare, base_troubles)
        late = {place: doubted[place] for place in by_base if not troubles[place].is_final}
        more, still = self._try(late, asking)
        for place in by_base:
            if place not in more:
                trouble = still.get(place, troubles[place])
                detail = f"{trouble.detail}; the base answers the same question"
                self.refused.setdefault(doubted[place].adapter, Refused(trouble.fault, detail))
        return answers | more

    def _try(
        self, questions: Mapping[int, Question], asking: Asking
    ) -> tuple[dict[int, Answer], dict[int, _Trouble]]:
        requests = {place: asking.request(question) for place, question in questions.items()}
        calls = {
            place: self._call(questions[place], request, asking)
            for place, request in requests.items()
            if request is not None
        }
        answers: dict[int, Answer] = {}
        troubles: dict[int, _Trouble] = {}
        for place, reply in zip(calls, self._replicas.map(list(calls.values())), strict=True):
            if isinstance(reply, Failure):
                troubles[place] = _Trouble(fault_of(reply), reply.detail, reply.trouble in _FINAL)
                continue
            try:
                answers[place] = self.parsed(partial(asking.read, questions[place]), reply)
            except NotFiniteError:
                troubles[place] = _Trouble(Fault.NOT_FINITE, "its output is not finite", is_final=True)
        return answers, troubles

    def _call(self, question: Question, request: Request, asking: Asking) -> Call:
        bare = asking.request(replace(question, adapter=""))
        probe = Call(*bare, self._limit / 2) if bare and question.adapter else None
        return Call(*request, self._limit, probe)

    def _raise_if_base_fails(
        self, questions: Mapping[int, Question], troubles: Mapping[int, _Trouble]
    ) -> None:
        for place, trouble in troubles.items():
            if not questions[place].adapter and not trouble.is_final:
                raise _away(trouble.detail)

    def parsed(self, read: Callable[[Mapping[str, Any]], Parsed], body: Mapping[str, Any]) -> Parsed:
        """Returns what ``read`` makes of an answer; raises FailedPrecondition (BACKEND_REFUSED)."""
        try:
            return read(body)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            urls = ", ".join(self._replicas.urls)
            raise protocol_error(urls, "answered what its protocol does not say") from None


def _away(detail: str) -> Unavailable:
    return Unavailable(
        "BACKEND_UNAVAILABLE",
        f"the backend does not answer even one question: {detail}; allow more time or look at its log",
    )
