"""Chooses what to load under a budget of memory: budgeted greedy with lazy evaluation.

The objective, the expected share with a set loaded, is a weighted coverage: what is worth v on a task covers
the task's share from 0 to v. So it is monotone and submodular, and taking at each step what adds most for
each byte, compared with the best single item, gives at least (1 − 1/e)/2 of the best gain over the bare base
that the budget allows (Khuller, Moss, Naor, "The budgeted maximum coverage problem", 1999); where all items
are of one size, at least 1 − 1/e (Nemhauser, Wolsey, Fisher 1978). The largest number of entries, which
matters to very small adapters only, is not part of the first proof. That items add less and less makes old
gains upper bounds, so few are computed anew (Minoux 1978).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorauter.manifests.model import Floats, Integers

LEAST_GAIN = 1e-9
"""A smaller gain counts as none: it is rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Worth:
    """What each of C candidates is worth on T tasks, in candidates' order.

    ``values[starts[c]:starts[c + 1]]``, 0..1, are candidate c's on tasks ``columns[…]``; ``base``, (T,), is
    what the bare model is worth; ``shares``, (T,), weigh the tasks.
    """

    shares: Floats
    base: Floats
    starts: Integers
    columns: Integers
    values: Floats

    def gain(self, candidate: int, best: Floats) -> float:
        """Returns what a candidate adds where ``best``, (T,), is there already."""
        part = slice(int(self.starts[candidate]), int(self.starts[candidate + 1]))
        tasks = self.columns[part]
        return float(np.maximum(self.values[part] - best[tasks], 0.0) @ self.shares[tasks])

    def gains(self, best: Floats) -> Floats:
        """Returns, (C,), what each candidate adds where ``best`` is there already."""
        added = np.maximum(self.values - best[self.columns], 0.0) * self.shares[self.columns]
        sums = np.concatenate(([0.0], np.cumsum(added)))
        found: Floats = sums[self.starts[1:]] - sums[self.starts[:-1]]
        return found

    def best(self, chosen: Sequence[int]) -> Floats:
        """Returns, (T,), what is reached on each task with ``chosen`` loaded."""
        reached = self.base.copy()
        for candidate in chosen:
            self.raise_to(reached, candidate)
        return reached

    def raise_to(self, reached: Floats, candidate: int) -> None:
        """Raises ``reached`` to what a candidate is worth, where that is more."""
        part = slice(int(self.starts[candidate]), int(self.starts[candidate + 1]))
        tasks = self.columns[part]
        reached[tasks] = np.maximum(reached[tasks], self.values[part])

    def total(self, reached: Floats) -> float:
        """Returns the expected share."""
        return float(reached @ self.shares)

    def losses(self, chosen: Sequence[int]) -> Floats:
        """Returns what the expected share loses without each of ``chosen``, given the others."""
        parts = [slice(int(self.starts[one]), int(self.starts[one + 1])) for one in chosen]
        counts = [part.stop - part.start for part in parts]
        every = np.arange(len(self.base))
        tasks = np.concatenate([every, *(self.columns[part] for part in parts)])
        values = np.concatenate([self.base, *(self.values[part] for part in parts)])
        owners = np.concatenate([np.full(len(every), -1), np.repeat(np.arange(len(parts)), counts)])
        order = np.lexsort((owners, -values, tasks))  # of equals the first owns, which loses nothing
        first = order[np.searchsorted(tasks[order], every)]
        second = np.searchsorted(tasks[order], every) + 1
        runners = order[np.minimum(second, len(order) - 1)]
        behind = np.where(tasks[runners] == every, values[runners], values[first])
        lost = np.zeros(len(parts))
        owned = owners[first] >= 0
        np.add.at(lost, owners[first][owned], ((values[first] - behind) * self.shares)[owned])
        return lost


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """How much may be loaded: ``sizes``, (C,), in bytes, above 0; candidates not ``allowed`` never are."""

    sizes: Integers
    allowed: Sequence[bool]
    budget: int
    most: int

    def room(self, chosen: Sequence[int]) -> int:
        """Returns the bytes that are left; none where as many as may be are loaded."""
        if len(chosen) >= self.most:
            return 0
        return self.budget - sum(int(self.sizes[candidate]) for candidate in chosen)


def select(worth: Worth, limit: Limit) -> list[int]:
    """Returns the candidates to load, in the order that they were taken; the same for the same input.

    What others made useless is taken out again, and the room used.
    """
    plain, seed = greedy(worth, limit), best_single(worth, limit)
    refined = [_refined(worth, limit, plain)]
    if plain[:1] != seed:
        refined.append(_refined(worth, limit, greedy(worth, limit, seed)))
    return max(refined, key=lambda chosen: round(worth.total(worth.best(chosen)), 12))


def best_single(worth: Worth, limit: Limit) -> list[int]:
    """Returns the candidate that alone adds most and has room, if any adds something."""
    gains = worth.gains(worth.base)
    gains[~np.asarray(limit.allowed, dtype=bool) | (limit.sizes > limit.room([]))] = 0.0
    best = int(np.argmax(gains)) if len(gains) else -1
    return [best] if best >= 0 and gains[best] > LEAST_GAIN else []


def greedy(worth: Worth, limit: Limit, begin: Sequence[int] = ()) -> list[int]:
    """Returns ``begin`` and what budgeted greedy adds to it: next always what adds most for each byte."""
    chosen, begun = list(begin), set(begin)
    reached = worth.best(chosen)
    gains = worth.gains(reached)
    left = limit.room(chosen)
    heap = [
        (-float(gains[one]) / int(limit.sizes[one]), one, len(chosen))
        for one in np.flatnonzero(np.asarray(limit.allowed, dtype=bool) & (gains > LEAST_GAIN)).tolist()
        if one not in begun
    ]
    heapq.heapify(heap)
    while heap:
        _, candidate, seen = heapq.heappop(heap)
        if limit.sizes[candidate] > left:
            continue
        if seen < len(chosen):
            gain = worth.gain(candidate, reached)
            if gain > LEAST_GAIN:
                heapq.heappush(heap, (-gain / int(limit.sizes[candidate]), candidate, len(chosen)))
            continue
        chosen.append(candidate)
        worth.raise_to(reached, candidate)
        left = limit.room(chosen)
    return chosen


def _refined(worth: Worth, limit: Limit, chosen: list[int]) -> list[int]:
    """Takes out what is useless beside the others, and fills the room, until all is of use."""
    while True:
        useful = _useful(worth, chosen)
        if len(useful) == len(chosen):
            return chosen
        chosen = greedy(worth, limit, useful)


def _useful(worth: Worth, chosen: Sequence[int]) -> list[int]:
    """Returns those without which something is lost; of two that are the same the later one."""
    kept = list(chosen)
    while kept:
        useless = np.flatnonzero(worth.losses(kept) <= LEAST_GAIN)
        if not len(useless):
            break
        del kept[int(useless[0])]
    return kept
