"""Rounds of measuring and dropping: what all strategies share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorauter.matching.model import Floats, Integers, Mask, Plan, Table

Rule = Callable[[Floats, Floats, int], Mask]
"""Says who stays, bool (S,), given the scores and likelihoods (S, m) so far and how many may stay."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """A schedule for one table.

    In round r the adapters that are still alive are measured on the first ``ends[r]`` examples; ``rule``
    then says who stays, ``most[r]`` adapters where it has its way. Those that stay to the end are measured
    from example ``rest`` on. ``screens``: the first round asks for likelihoods alone.
    """

    ends: tuple[int, ...]
    most: tuple[int, ...]
    rule: Rule
    rest: int
    screens: bool = False

    def is_settled(self, count: int) -> bool:
        """Whether so few adapters are left that all of them stay, measured on all examples."""
        return self.rest == 0 and count <= self.most[-1]


def plan_rounds(table: Table, arms: Mask | None, rounds: Rounds) -> Plan:
    """Returns the plan of a table by a schedule.

    The rounds are run again from the first on every call, and each looks only at its own examples. So what
    later rounds measured changes no earlier one, and all arms are compared on the same examples whenever
    they came.
    """
    asked = np.ones(len(table.scores), dtype=bool) if arms is None else arms.copy()
    alive = table.adapters
    fell = np.zeros(len(alive), dtype=np.int64)
    began: list[int] = []
    for place, end in enumerate(rounds.ends):
        if rounds.is_settled(int(alive.sum())):
            break
        began.append(int(alive.sum()))
        screening = rounds.screens and place == 0
        lacking = alive[:, None] & _unknown(table, screening)
        lacking[:, end:] = False
        cells = lacking & asked[:, None]
        if cells.any():
            later = _later(rounds, place, began[-1], table.scores.shape[1])
            return _plan(table, cells, screening, began, fell, later)
        gone: Mask = np.any(lacking, axis=1)
        rows = np.flatnonzero(alive & ~gone)
        if len(rows) > rounds.most[place]:
            gone[rows[~_stays(table, rows, rounds, place)]] = True
        fell[gone] = place + 1
        alive &= ~gone
    began.append(int(alive.sum()))
    cells = (alive & asked)[:, None] & _unknown(table, False)
    cells[:, : rounds.rest] = False
    return _plan(table, cells, False, began, fell, 0)


def _stays(table: Table, rows: NDArray[np.intp], rounds: Rounds, place: int) -> Mask:
    end, most = rounds.ends[place], rounds.most[place]
    scores, likelihoods = table.scores[rows, :end], table.likelihoods[rows, :end]
    if rounds.screens and place == 0:
        stays = rounds.rule(np.zeros_like(scores), likelihoods, most)
        stays[np.isnan(likelihoods).all(axis=1)] = True  # known by score alone: nothing to screen by
        return stays
    return rounds.rule(scores, likelihoods, most)


def _unknown(table: Table, screening: bool) -> Mask:
    unknown: Mask = np.isnan(table.scores)
    return unknown & np.isnan(table.likelihoods) if screening else unknown


def _plan(table: Table, cells: Mask, screening: bool, began: list[int], fell: Integers, later: int) -> Plan:
    """Returns the plan that asks for ``cells``, and for all that the base lacks."""
    base = np.zeros_like(cells)
    if table.base >= 0:
        base[table.base] = np.isnan(table.scores[table.base])
    if screening:
        later += int(base.sum())
    else:
        cells = cells | base
    left = int(cells.sum()) + later
    return Plan(cells, screening, round=len(began), alive=tuple(began), fell=fell, left=left)


def _later(rounds: Rounds, place: int, count: int, examples: int) -> int:
    """Returns the evaluations after the round at ``place``, begun by ``count``, if as many stay as may."""
    total = 0
    measured = 0 if rounds.screens and place == 0 else rounds.ends[place]
    for most, end in zip(rounds.most[place:], (*rounds.ends[place + 1 :], measured), strict=True):
        count = min(count, most)
        if rounds.is_settled(count):
            break
        total += count * max(end - measured, 0)
        measured = max(end, measured)
    return total + count * (examples - max(measured, rounds.rest))
