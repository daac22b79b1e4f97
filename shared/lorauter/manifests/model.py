"""What a TGI instance could load, what was measured of it, and what is proposed. Plain immutable values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """An adapter's version in an entry, by its content, with its weight (6 decimals count)."""

    adapter_id: str
    version: int
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """What could be loaded under one name: ``members``, heaviest first, at ``rank``, in ``size_bytes``.

    ``as_is``: the folder of its only member serves; else it is written anew as a composite. ``refusal`` says
    why TGI cannot serve it, in which case rank and size are 0; empty where it can.
    """

    members: tuple[Member, ...]
    rank: int
    size_bytes: int
    as_is: bool = True
    refusal: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Scores on T tasks, each in 0..1.

    ``shares``, (T,), sum to 1: how much of the traffic is a task's. ``base``, (T,): what the bare model
    scores. ``scores[e]`` is that of candidate ``rows[e]`` on task ``columns[e]``, (E,) each, and no pair
    comes twice; what is not listed counts as no better than the base.
    """

    shares: Floats
    base: Floats
    rows: Integers
    columns: Integers
    scores: Floats


@dataclass(frozen=True, slots=True)
class Entry:
    """What an instance loads under ``name``, of a rank that is not padded.

    ``gain`` is what the expected share loses without it, given the others, 0..1.
    """

    name: str
    members: tuple[Member, ...]
    rank: int
    size_bytes: int
    gain: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not loaded though it would add ``gain`` to the expected share, and why, for people."""

    members: tuple[Member, ...]
    size_bytes: int
    gain: float
    reason: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What instances of a pool should load, most gain first.

    ``digest`` is "sha256:" and 64 hex digits over the pool and what is loaded. ``expected_share`` is the
    expected score, each task's as a share of its best, over the tasks as the traffic has them, 0..1;
    ``base_share`` the same with nothing loaded.
    """

    pool: str
    digest: str
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]
    memory_bytes: int
    expected_share: float
    base_share: float

    @property
    def size_bytes(self) -> int:
        """Memory that the entries take on each instance."""
        return sum(entry.size_bytes for entry in self.entries)
