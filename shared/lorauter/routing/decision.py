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


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """How to route a query.

    ``max_adapters`` is 1 to 16. Only tasks that carry all ``tags`` take part. Ids to exclude that the pool
    does not have change nothing. ``task_count`` is how many tasks the decision lists.
    """

    strategy: str = DEFAULT_STRATEGY
    max_adapters: int = DEFAULT_MAX_ADAPTERS
    tags: frozenset[str] = frozenset()
    exclude_tasks: frozenset[str] = frozenset()
    exclude_adapters: frozenset[str] = frozenset()
    explain: bool = False
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
class Explanation:
    """Why a decision is what it is: constants used, affinities by task id, candidates best first."""

    constants: Mapping[str, float]
    affinities: tuple[tuple[str, Affinity], ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one query.

    ``adapters`` is the weighted set, heaviest first, weights summing to 1; the base may be one of them; it
    is empty unless ``action`` is ADAPTERS. ``best_single`` serves where only one arm can be served.
    ``typicality`` is the share (0..1) of known queries that are less like their nearest task.
    """

    strategy: str
    action: Action
    reason: str
    adapters: tuple[WeightedArm, ...]
    best_single: Arm
    expected_utility: float
    tasks: tuple[TaskMatch, ...]
    typicality: float
    explanation: Explanation | None = field(default=None)
