"""What the worker needs from outside itself, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from lorauter.metrics import Metric
from lorauter.prompts import GenerationSpec


class Wakeups(Protocol):
    """Tells workers that there is work. The truth is the outbox; a lost wake-up costs seconds."""

    def wake(self, name: str) -> None:
        """Wakes the workers of ``index``, ``matching`` or ``reconcile``; never raises."""


Entry = tuple[str, Mapping[bytes, bytes]]
"""An entry of a stream: its id there, and its fields."""


class DecisionStream(Protocol):
    """Decisions that routers made and that are not stored yet, by tenant."""

    def take(self, tenant: str, count: int) -> list[Entry]:
        """Returns at most ``count`` entries that nobody else has; what was not finished comes again later.

        Raises Unavailable (REDIS_UNAVAILABLE).
        """

    def finish(self, tenant: str, ids: Sequence[str]) -> None:
        """Removes entries that were taken; raises Unavailable (REDIS_UNAVAILABLE)."""


class WantedCompositions(Protocol):
    """Compositions that gateways want as composites: see lorauter.compositions_wanted.

    Every call raises Unavailable (REDIS_UNAVAILABLE).
    """

    def take(self) -> Entry | None:
        """Returns the oldest entry of what is wanted, which nobody else gets; None where there is none.

        It does not come back: a composite that kills its writer is not to be tried again at once.
        """

    def fates(self) -> Mapping[bytes, bytes]:
        """Returns what is said of all compositions, by key."""

    def put(self, key: str, fate: str) -> None:
        """Says what became of a composition."""

    def forget(self, keys: Sequence[bytes]) -> None:
        """Says nothing of these any more."""


@dataclass(frozen=True, slots=True)
class Question:
    """One evaluation: an input as build_input returns it, its target, and who answers.

    ``adapter`` is a digest, empty for the base. A weighted set has ``members``, (digest, weight) each, and a
    name of its own for ``adapter``.
    """

    input: Mapping[str, Any]
    target: str
    adapter: str
    members: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a task's answers are made and judged."""

    metric: Metric
    generation: GenerationSpec


UNLIKELY = -20.0
"""The likelihood that counts for a question that not even the base can take: below any token's by chance."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: a score in 0..1, and the mean log-likelihood of the target's tokens (nats).

    Either is NaN where it was not asked for or the backend cannot tell.
    """

    score: float
    likelihood: float


class Fault(StrEnum):
    """Why an adapter is quarantined."""

    DOES_NOT_LOAD = "DOES_NOT_LOAD"
    NOT_FINITE = "NOT_FINITE"
    NO_EFFECT = "NO_EFFECT"
    TOO_SLOW = "TOO_SLOW"


@dataclass(frozen=True, slots=True)
class Refused:
    """The base answers this question but this adapter does not: ``detail`` says what the backend said."""

    fault: Fault
    detail: str


class Evaluator(Protocol):
    """Has adapters answer questions and scores the answers. Remembers which adapters it refused."""

    @property
    def takes_sets(self) -> bool:
        """Whether questions may have members: whether weighted sets are served as they are."""
        ...

    def evaluate(
        self, questions: Sequence[Question], scoring: Scoring, likelihood_only: bool = False
    ) -> list[Answer | Refused]:
        """Returns one answer, or refusal, for each question, in order.

        ``likelihood_only`` asks for no score, which costs one forward pass whatever the metric. A question
        that not even the base can take, such as one that is too long, scores 0 and is UNLIKELY. Raises
        Unavailable (BACKEND_UNAVAILABLE) when no backend answers in time, FailedPrecondition
        (BACKEND_REFUSED) when one answers what it never should, and FailedPrecondition
        (LIKELIHOOD_UNSUPPORTED), before any work, when likelihoods are needed and the backend tells none.
        """

    def close(self) -> None:
        """Releases connections."""
