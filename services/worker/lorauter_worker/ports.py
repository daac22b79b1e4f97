"""What the worker needs from outside itself, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorauter.metrics import Metric
from lorauter.prompts import GenerationSpec


class Wakeups(Protocol):
    """Tells workers that there is work. The truth is the outbox; a lost wake-up costs seconds."""

    def wake(self, name: str) -> None:
        """Wakes the workers of ``index``, ``matching`` or ``reconcile``; never raises."""


@dataclass(frozen=True, slots=True)
class Question:
    """One evaluation: an input as build_input returns it, its target, and who answers.

    ``adapter`` is a digest, empty for the base.
    """

    input: Mapping[str, Any]
    target: str
    adapter: str


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a task's answers are made and judged."""

    metric: Metric
    generation: GenerationSpec


@dataclass(frozen=True, slots=True)
class Refused:
    """The backend takes this input from the base but not with this adapter, for ``reason``."""

    reason: str


class Evaluator(Protocol):
    """Has adapters answer questions and scores the answers."""

    def evaluate(self, questions: Sequence[Question], scoring: Scoring) -> list[float | Refused]:
        """Returns one score in 0..1, or refusal, for each question, in order.

        A question that not even the base can take, such as one that is too long, scores 0. Raises
        Unavailable (BACKEND_UNAVAILABLE) when no backend answers in time, FailedPrecondition
        (BACKEND_REFUSED) when one answers what it never should.
        """

    def close(self) -> None:
        """Releases connections."""
