"""Remembers decisions: the same query on the same snapshot is decided once."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass

from lorauter.routing.bm25 import Terms
from lorauter.routing.decision import Decision, RouteOptions
from lorauter.routing.model import Vector


@dataclass(frozen=True, slots=True, eq=False)
class Remembered:
    """A decision, on how many tasks, all or only candidates, and what a log keeps of its query."""

    decision: Decision
    scored_tasks: int
    is_exact: bool
    vector: Vector
    terms: Terms | None


class DecisionMemory:
    """Keeps the last ``size`` decisions that were made or asked for again. Belongs to one event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: OrderedDict[bytes, Remembered] = OrderedDict()

    def recall(self, key: bytes) -> Remembered | None:
        """Returns what was kept under ``key``."""
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def keep(self, key: bytes, made: Remembered) -> None:
        """Keeps a decision, and forgets the one that was longest not asked for where there are too many."""
        self._known[key] = made
        while len(self._known) > self._size:
            self._known.popitem(last=False)


def key_of(tenant: str, snapshot: str, pool: str, text: str, options: RouteOptions) -> bytes:
    """Returns what a decision is kept under: a hash of all that it depends on, which may be large.

    ``snapshot`` is a snapshot's digest. ``tenant`` asked: in a public pool, too, none learns from timings
    what another asked. Explanations are no part of it: such decisions are not kept.
    """
    restrictions = (
        sorted(names) for names in (options.tags, options.exclude_tasks, options.exclude_adapters)
    )
    asked = [options.strategy, options.max_adapters, options.task_count, *restrictions]
    depends_on = [tenant, snapshot, pool, *asked]
    return hashlib.blake2b(f"{json.dumps(depends_on)}\n{text}".encode(), digest_size=16).digest()
