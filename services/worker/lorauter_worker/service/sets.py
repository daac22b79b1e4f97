"""A task's candidate compositions: which there are, what was measured of them, and what came of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlmodel import Session

from lorauter.matching import FRESH, Evidence, Judgement, Table, candidates, judged, set_name
from lorauter.matching.compositions import SIZES
from lorauter.matching.model import Floats
from lorauter_worker.domain.arms import Arm
from lorauter_worker.service.task_table import Cell, TaskTable, read_cells


@dataclass(frozen=True, slots=True)
class Sets:
    """Candidate compositions of one task; row by row of ``table`` one of them, an arm with members.

    ``single``: (m,), what the best single arm scored on the ``fresh`` examples, which chose no candidate.
    """

    table: TaskTable
    single: Floats
    fresh: slice

    def lacking(self) -> list[Cell]:
        """Returns what is still to be measured."""
        unknown = np.isnan(self.table.table.scores)
        unknown[:, : self.fresh.start] = False
        unknown[:, self.fresh.stop :] = False
        return [(int(row), int(place)) for row, place in np.argwhere(unknown)]

    def judged(self) -> list[tuple[Arm, Judgement, datetime]]:
        """Returns each composition that was measured on all fresh examples, and when it was."""
        rows = [(arm, self.table.table.scores[row, self.fresh]) for row, arm in enumerate(self.table.arms)]
        return [
            (arm, judged(self.single, scores), self.table.times[arm.digest])
            for arm, scores in rows
            if not np.isnan(scores).any()
        ]


def read_sets(
    session: Session,
    table: TaskTable,
    found: Sequence[Evidence],
    refused: Collection[str] = (),
    since: datetime | None = None,
) -> Sets | None:
    """Returns the candidates of a task whose adapters were measured, and what is known of them.

    ``found``: the evidence of the table's arms. Only eligible adapters that stayed compose, best first by the
    choosing examples. What is ``refused``, by name, and measurements older than ``since`` do not count. None
    where fewer than two compose, or where the best single has every fresh example right, which nothing beats.
    """
    fresh = slice(table.table.choosing, min(table.table.choosing + FRESH, table.table.scores.shape[1]))
    rows = _composing(table, found)
    single = _best_single(table, found, fresh)
    if len(rows) < min(SIZES) or single is None or single.min() >= 1.0:
        return None
    chosen = table.table.scores[rows, : table.table.choosing]
    arms = [
        arm for weights in candidates(chosen) if (arm := _arm(table, rows, weights)).digest not in refused
    ]
    scores, likelihoods, times = read_cells(session, table.task, arms, since)
    measured = Table(scores, likelihoods, table.table.choosing, base=-1)
    asked = np.ones(len(arms), dtype=bool)
    return Sets(TaskTable(table.task, tuple(arms), measured, asked, times), single, fresh)


def _composing(table: TaskTable, found: Sequence[Evidence]) -> list[int]:
    """Returns the rows of the adapters that compose, best first, each content once."""
    places = sorted((each.place, row) for row, each in enumerate(found) if each.place and each.eligible)
    by_content: dict[str, int] = {}
    for _, row in places:
        by_content.setdefault(table.arms[row].digest, row)
    return list(by_content.values())[: max(SIZES)]


def _best_single(table: TaskTable, found: Sequence[Evidence], fresh: slice) -> Floats | None:
    """Returns the fresh scores of the arm that routing takes for the best; None where there are none.

    All examples chose it, the fresh ones too: what luck that brings is against the compositions.
    """
    known = np.flatnonzero(~np.isnan(table.table.scores[:, fresh]).any(axis=1))
    if fresh.start >= fresh.stop or len(known) == 0:
        return None
    best = max(known.tolist(), key=lambda row: (found[row].shrunk_score, -found[row].place))
    scores: Floats = table.table.scores[best, fresh]
    return scores


def _arm(table: TaskTable, rows: Sequence[int], weights: Sequence[float]) -> Arm:
    members = tuple((table.arms[row], weight) for row, weight in zip(rows, weights, strict=False))
    name = set_name([(arm.digest, weight) for arm, weight in members])
    return Arm(name, 0, name, members)
