"""The answer to one query, with its evidence, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lorauter.routing.compiled import Arm
from lorauter.routing.model import Affinity

DEFAULT_STRATEGY = "default"
DEFAULT_MAX_ADAPTERS = 3
MOST_ADAPTERS = 16
MOST_WHY_NOT = 8
MOST_TAGS = 32
MOST_EXCLUDED = 1_000
MOST_RUNNERS_UP = 8


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """How to route a query.

    ``max_adapters`` is 1 to 16. Only tasks that carry all ``tags``, at most 32, take part. Ids to exclude,
    at most 1,000 of a kind, that the pool does not have change nothing. ``task_count`` is how many tasks the
    decision lists. ``why_not`` names at most 8 adapters that the explanation says something about; it needs
    ``explain``.
    """

    strategy: str = DEFAULT_STRATEGY
    max_adapters: int = DEFAULT_MAX_ADAPTERS
    tags: frozenset[str] = frozenset()
    exclude_tasks: frozenset[str] = frozenset()
    exclude_adapters: frozenset[str] = frozenset()
    explain: bool = False
    why_not: tuple[str, ...] = ()
    task_count: int = 8


class Action(StrEnum):
    """What to do with a query: serve adapters, serve the base, or serve nothing."""

    ADAPTERS = "ADAPTERS"
    BASE = "BASE"
    REFUSE = "REFUSE"


@dataclass(frozen=True, slots=True)
class WeightedArm:
    """One arm of a weighted set; ``weight`` is in (0, 1]."""

    arm: Arm
    weight: float


@dataclass(frozen=True, slots=True)
class TaskMatch:
    """A task that the query resembles: cosine ``similarity`` (-1..1) and ``probability`` (0..1)."""

    task_id: str
    similarity: float
    probability: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm that was considered, with its expected share of the best score (0..1) and its fate."""

    adapter_id: str
    expected_utility: float
    reason: str


@dataclass(frozen=True, slots=True)
class TaskShare:
    """What an arm's weight has from one task of some ``probability``: a ``share`` in (0, 1] of all weight."""

    task_id: str
    probability: float
    share: float


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an arm's weight comes from: the shares of its ``tasks``, largest first, sum to ``weight``."""

    arm: Arm
    weight: float
    tasks: tuple[TaskShare, ...]


@dataclass(frozen=True, slots=True)
class NextBest:
    """The arm of the largest expected utility that is not served.

    ``behind`` is what it lacks to the best single; below 0 where a strategy has other reasons to prefer that.
    """

    arm: Arm
    expected_utility: float
    behind: float


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """A composition that was measured on a task, and why it is, or is not, served.

    ``gain`` over the best single arm there, and its standard error. ``expected_utility``: its expected share
    of the best single score here, above 1 where it is expected to do better than any single arm.
    """

    task_id: str
    name: str
    members: tuple[WeightedArm, ...]
    score: float
    count: int
    gain: float
    gain_error: float
    expected_utility: float
    served: bool
    reason: str


class Fate(StrEnum):
    """What became of an adapter that somebody asks about."""

    UNKNOWN = "UNKNOWN"
    NOT_ROUTABLE = "NOT_ROUTABLE"
    EXCLUDED = "EXCLUDED"
    UNMEASURED = "UNMEASURED"
    WORTH_LESS = "WORTH_LESS"
    BEST_OF_NO_TASK = "BEST_OF_NO_TASK"
    BEYOND_MAX_ADAPTERS = "BEYOND_MAX_ADAPTERS"
    POLICY = "POLICY"
    SERVED = "SERVED"


@dataclass(frozen=True, slots=True)
class WhyNot:
    """Why an adapter is not served, or that it is: ``message`` says it in a sentence.

    ``expected_utility`` is 0 where none is known. ``task_id`` is the task that costs it most against the best
    single, where there is one.
    """

    adapter_id: str
    fate: Fate
    message: str
    expected_utility: float = 0.0
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a decision is what it is.

    ``constants`` are those used; ``affinities`` those of the tasks listed, with the task's id; ``candidates``
    are best first; ``origins`` are those of the weighted set, in its order; ``why_not`` has one for each
    adapter asked about; ``compositions`` are the measured ones of the tasks that give weight.
    """

    constants: Mapping[str, float] = field(default_factory=dict)
    affinities: tuple[tuple[str, Affinity], ...] = ()
    candidates: tuple[Candidate, ...] = ()
    origins: tuple[Origin, ...] = ()
    next_best: NextBest | None = None
    why_not: tuple[WhyNot, ...] = ()
    compositions: tuple[MeasuredSet, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one query.

    ``adapters`` is the weighted set, heaviest first, weights summing to 1; the base may be one of them; it
    is empty unless ``action`` is ADAPTERS. ``best_single`` serves where only one arm can be served.
    ``typicality`` is the share (0..1) of known queries that are less like their nearest task. ``measured``:
    whether what is to be served was measured as it is: one arm, or a composition that beat the best single.
    ``runners_up``: what else may serve where ``best_single`` cannot, with its expected share of the best
    score (0..1), best first, at most 8; none unless ``action`` is ADAPTERS.
    """

    strategy: str
    action: Action
    reason: str
    adapters: tuple[WeightedArm, ...]
    best_single: Arm
    expected_utility: float
    tasks: tuple[TaskMatch, ...]
    typicality: float
    measured: bool = True
    runners_up: tuple[tuple[Arm, float], ...] = ()
    explanation: Explanation | None = field(default=None)
