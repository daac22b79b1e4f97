"""What a matching knows of one task, and what a strategy wants measured next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]


def example_key(text: str, target: str) -> int:
    """Returns a signed 64-bit number for an example's content.

    Examples are used in the order of their keys: an order that nobody chose, that is the same for all
    adapters, and that an example keeps when others come or go. Equal examples count once.
    """
    content = f"{len(text)}:{text}{target}".encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What was measured on one task: A arms, one of them the base, by n examples in the order of use.

    ``scores``: float64 (A, n), 0..1, NaN where not measured. ``likelihoods``: float64 (A, n), the mean
    log-likelihood of the target's tokens, NaN where unknown. The first ``choosing`` examples choose among
    the arms; the others judge what was chosen. ``base`` is the base's row, -1 where it was not measured (in
    published data). ``likelihood_first``: a likelihood costs less than a score, since the metric needs
    generation, and the backend tells it, so a strategy may ask for likelihoods alone.
    """

    scores: Floats
    likelihoods: Floats
    choosing: int
    base: int
    likelihood_first: bool = False

    @property
    def adapters(self) -> Mask:
        """Which rows are adapters: bool (A,), all but the base's."""
        rows = np.ones(len(self.scores), dtype=bool)
        if self.base >= 0:
            rows[self.base] = False
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What to measure next of a table, and how far the matching is.

    ``cells``: bool (A, n), wanted and not measured yet; none is left when the matching is done.
    ``likelihood_only``: the cells want a likelihood, no score. ``round``: the current one, from 1; the last
    one measures those that stayed on what is left. ``alive``: number of adapters that each round began
    with, from round 1. ``fell``: int64 (A,), the round in which an arm fell, 0 if it stays. ``left``:
    evaluations still expected, ``cells`` included.
    """

    cells: Mask
    likelihood_only: bool
    round: int
    alive: tuple[int, ...]
    fell: Integers
    left: int

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to measure."""
        return not self.cells.any()


class Strategy(Protocol):
    """Decides what to measure next, from what was measured alone: it holds no state.

    So work that was killed goes on where the table ends, and an arm that joins later is put through the
    rounds that the others passed.
    """

    @property
    def name(self) -> str:
        """What callers select it by."""
        ...

    def plan(self, table: Table, arms: Mask | None = None) -> Plan:
        """Returns what to measure next.

        Only ``arms``, bool (A,), and the base are measured; None means all. The others compete with what is
        known of them, and fall where that ends: leave out of the table what must not compete at all.
        """
        ...
