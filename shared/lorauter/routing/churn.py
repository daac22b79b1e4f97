"""Churn: how many known queries go to another adapter because tasks came, changed or went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorauter.routing.compiled import compile_pool
from lorauter.routing.deciding import decide
from lorauter.routing.decision import RouteOptions
from lorauter.routing.examples import TaskExamples
from lorauter.routing.model import Pool, Task
from lorauter.routing.strategies.strategy import Query

MOST_QUERIES = 256
"""Queries that stand for all, evenly spaced over the tasks."""


def churn(
    before: Pool, after: Pool, examples: Sequence[TaskExamples], most: int = MOST_QUERIES
) -> float | None:
    """Returns the share, 0..1, of known queries whose best single adapter is another one, or version.

    The queries are examples of tasks that both pools have in one version, at most ``most``; None if there
    are none. What was measured, and which adapters there are, is taken from ``after`` for both, so that new
    affinities and adapters are no churn, but what a new task's own affinities attract is. Examples are what
    their tasks are known by, so they move less than strangers do.
    """
    unchanged = _versions(before) & _versions(after)
    versions = dict(_versions(after))
    kept = [each for each in examples if (each.task_id, versions.get(each.task_id, 0)) in unchanged]
    queries = _spaced(kept, most)
    if not queries:
        return None
    pools = [compile_pool(pool) for pool in (_as_measured(before, after), after)]
    options = RouteOptions(max_adapters=1, task_count=1)
    changed = [len({decide(pool, query, options).best_single for pool in pools}) > 1 for query in queries]
    return float(np.mean(changed))


def _versions(pool: Pool) -> set[tuple[str, int]]:
    return {(task.task_id, task.version) for task in pool.tasks}


def _as_measured(before: Pool, after: Pool) -> Pool:
    today = {task.task_id: task for task in after.tasks}

    def measured(task: Task) -> Task:
        now = today.get(task.task_id)
        if now is None or now.version != task.version:
            return task
        return replace(task, affinities=now.affinities, compositions=now.compositions)

    return replace(before, tasks=tuple(map(measured, before.tasks)), adapters=after.adapters)


def _spaced(examples: Sequence[TaskExamples], most: int) -> list[Query]:
    """Returns at most ``most`` of all examples, evenly spaced."""
    ends = np.cumsum([len(each.vectors) for each in examples], dtype=np.intp)
    total = int(ends[-1]) if len(ends) else 0
    queries = []
    for position in np.linspace(0, total - 1, min(most, total)).astype(np.intp):
        row = int(np.searchsorted(ends, position, "right"))
        task = examples[row]
        place = int(position - ends[row] + len(task.vectors))
        terms = task.terms[place] if len(task.terms) else None
        queries.append(Query(task.vectors[place], terms=terms))
    return queries
