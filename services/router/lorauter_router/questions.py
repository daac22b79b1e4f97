"""What is asked of a router, what is found out for it, and what is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lorauter import tracing
from lorauter.routing.candidates import suffices
from lorauter.routing.compiled import CompiledPool
from lorauter.routing.deciding import decide
from lorauter.routing.decision import Decision, RouteOptions
from lorauter.routing.strategies.strategy import Query
from lorauter_router.domain import ServedSnapshot
from lorauter_router.memory import Remembered


class SearchKind(StrEnum):
    """How tasks were searched: all scored, or candidates of the index alone."""

    EXACT = "EXACT"
    CANDIDATES = "CANDIDATES"


@dataclass(frozen=True, slots=True)
class Question:
    """A tenant's query with its restrictions.

    ``text`` is the routed text; an empty ``pool`` is the only one.
    """

    tenant: str
    text: str
    pool: str = ""
    options: RouteOptions = field(default_factory=RouteOptions)
    min_generation: str = ""


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds spent; ``cached`` where the query's vector, or the decision itself, was known."""

    encode_ms: float
    search_ms: float
    decide_ms: float
    total_ms: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision, what it was made on, and its name in logs, headers and replays.

    ``tenant`` is the one whose pool it is.
    """

    decision_id: str
    tenant: str
    pool: str
    decision: Decision
    generation: str
    encoder_digest: str
    profile_digest: str
    stale: bool
    search: SearchKind
    scored_tasks: int
    timings: Timings


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A question with what was found out for it: its pool, its query and, where searched for, candidates.

    ``served`` is the snapshot that the pool is of. ``known`` is its decision, where it was made before.
    ``search_seconds`` were spent on candidates, also in vain.
    """

    question: Question
    served: ServedSnapshot
    pool: CompiledPool
    key: bytes
    known: Remembered | None
    query: Query
    cached: bool = True
    few: CompiledPool | None = None
    search_seconds: float = 0.0

    def decided(self) -> Remembered:
        """Returns the decision: the one before, on the candidates if they suffice, or on all tasks."""
        if self.known is not None:
            return self.known
        if self.few is not None:
            decision = decide(self.few, self.query, self.question.options)
            if suffices(self.few, decision):
                return self._made(decision, self.few)
        return self._made(decide(self.pool, self.query, self.question.options), self.pool)

    def _made(self, decision: Decision, scored: CompiledPool) -> Remembered:
        is_exact = scored is self.pool
        return Remembered(decision, len(scored.tasks), is_exact, self.query.vector, self.query.terms)


def described(answer: Answer) -> tracing.Attributes:
    """Returns the attributes of the span in which a query was decided; none says what it was."""
    decision = answer.decision
    return {
        "lorauter.decision": answer.decision_id,
        "lorauter.pool": answer.pool,
        "lorauter.generation": answer.generation,
        "lorauter.stale": answer.stale,
        "lorauter.strategy": decision.strategy,
        "lorauter.action": decision.action.value,
        "lorauter.typicality": decision.typicality,
        "lorauter.adapters": [f"{each.arm.adapter_id}@{each.arm.version}" for each in decision.adapters],
        "lorauter.cached": answer.timings.cached,
    }
