"""Reads FLAN data: 48 tasks, their validation sets and queries, and what 48 adapters really scored."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Flan:
    """T tasks in the order of affinity.csv.

    ``affinity``: float64 (T, T), 0..1, the score of adapter a (column) on task t (row); adapter t is the one
    trained on task t, the aligned adapter. ``clusters``: (T,) names. ``validation`` and ``queries``: inputs
    by task; queries that stand in a validation set are left out. ``kept_queries``: which of all stay.
    These three are in the files' order of tasks. Without ``is_scored`` nothing is known of scores: tasks are
    in the order of tasks.jsonl, and ``affinity`` is the identity, so that every adapter has a task.
    """

    tasks: tuple[str, ...]
    clusters: tuple[str, ...]
    affinity: Floats
    validation: dict[str, list[str]]
    queries: dict[str, list[str]]
    kept_queries: NDArray[np.bool_]
    is_scored: bool = True

    def percent_of_oracle(self, scores: dict[str, list[float]]) -> float:
        """Returns the mean over clusters of cluster mean / aligned adapters' cluster mean, in %.

        ``scores`` are those of the queries by task.
        """
        shares = []
        for cluster in sorted(set(self.clusters)):
            rows = [row for row, name in enumerate(self.clusters) if name == cluster]
            had = [score for row in rows for score in scores[self.tasks[row]]]
            aligned = [self.affinity[row, row] for row in rows for _ in scores[self.tasks[row]]]
            shares.append(np.mean(had) / np.mean(aligned))
        return 100 * float(np.mean(shares))


def read_flan(directory: Path, needs_scores: bool = True) -> Flan:
    """Reads affinity.csv, tasks.jsonl, validation.jsonl and queries.jsonl in ``directory``.

    Unless it ``needs_scores``, affinity.csv may be missing, as it is where `make flan` made the folder.
    """
    clusters = {row["task"]: row["cluster"] for row in _lines(directory / "tasks.jsonl")}
    is_scored = needs_scores or (directory / "affinity.csv").exists()
    tasks, affinity = _scores(directory) if is_scored else (tuple(clusters), np.eye(len(clusters)))
    validation = _inputs(directory / "validation.jsonl")
    seen = {text for texts in validation.values() for text in texts}
    queries = _inputs(directory / "queries.jsonl")
    return Flan(
        tasks=tasks,
        clusters=tuple(clusters[task] for task in tasks),
        affinity=affinity,
        validation=validation,
        queries={task: [text for text in texts if text not in seen] for task, texts in queries.items()},
        kept_queries=np.array([text not in seen for texts in queries.values() for text in texts]),
        is_scored=is_scored,
    )


def _scores(directory: Path) -> tuple[tuple[str, ...], Floats]:
    with (directory / "affinity.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    tasks = tuple(row[0] for row in rows)
    if tuple(header[1:]) != tasks:
        raise ValueError(f"{directory}/affinity.csv: rows and columns do not name the same tasks in order")
    return tasks, np.array([[float(score) for score in row[1:]] for row in rows]) / 100


def _inputs(path: Path) -> dict[str, list[str]]:
    by_task: dict[str, list[str]] = {}
    for line in _lines(path):
        by_task.setdefault(line["task"], []).append(line["input"])
    return by_task


def _lines(path: Path) -> list[dict[str, Any]]:
    # not splitlines: texts hold separators of lines other than \n
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
