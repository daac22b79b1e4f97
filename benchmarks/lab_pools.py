"""A seed's pool as the router has it in each regime: matched and fitted without what the regime takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab_measured import Measured
from benchmarks.lab_recipe import task_ids
from benchmarks.runs import run_strategy
from lorauter.identifiers import BASE
from lorauter.index.codec import canonical
from lorauter.matching import (
    DEFAULT_STRATEGY,
    Evidence,
    Table,
    choosing_count,
    evidence,
    example_key,
    strategy,
)
from lorauter.routing import (
    CompiledPool,
    Decision,
    RouteOptions,
    TaskExamples,
    compile_pool,
    decide,
    fit_profile,
    represent,
    term_frequencies,
)
from lorauter.routing.bm25 import terms_of
from lorauter.routing.model import Adapter, Affinity, Pool, Snapshot, Task
from lorauter.routing.strategies.strategy import Query
from lorauter_suite.demo.data import Example

REGIMES = ("non_ood", "semi_ood", "ood")
SET_SIZE = 3
"""Most adapters of a set: what callers get who say nothing."""

Rows = NDArray[np.intp]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """What a strategy answers to the T x q queries: rows of arms, the base being row A.

    ``chosen`` (T, q, SET_SIZE) and its ``weights``, ≥ 0, which sum to 1: the weighted set, padded with the
    base at weight 0. ``single`` (T, q): the best single arm. ``nearest`` (T, q): the row of the most probable
    task.
    """

    chosen: Rows
    weights: Floats
    single: Rows
    nearest: Rows


class LabPools:
    """Decides the queries of each task on a pool that lacks what the regime takes away for that task.

    Non-OOD takes nothing. Semi-OOD takes all adapters that were trained on the task, stopped early or not;
    OOD takes the task as well. What is left is matched and fitted anew, as if the rest had never been there.
    """

    def __init__(
        self,
        measured: Measured,
        homes: Sequence[int],
        names: Sequence[str],
        validation: Sequence[Sequence[Example]],
        queries: Sequence[Sequence[Example]],
    ) -> None:
        """``homes`` (A,): the row of the task that each adapter was trained on; ``names`` (A,): their ids."""
        self._measured, self._homes, self._names = measured, np.array(homes), tuple(names)
        self._queries = [[example.input for example in rows] for rows in queries]
        self._keys = [[example_key(*example) for example in rows] for rows in validation]
        self._texts = [[example.input for example in rows] for rows in validation]
        self._examples = [self._task_examples(row) for row in range(len(validation))]
        self._pool = cache(self._compiled)
        self._matched = cache(self._affinities)

    def taken(self, row: int, regime: str) -> tuple[Mask, Mask]:
        """Returns which tasks (T,) and which adapters (A,) a regime takes away for the queries of a task."""
        tasks, adapters = np.arange(len(self._texts)) == row, self._homes == row
        return {
            "non_ood": (tasks & False, adapters & False),
            "semi_ood": (tasks & False, adapters),
            "ood": (tasks, adapters),
        }[regime]

    def routes(self, regime: str, name: str) -> Routes:
        """Returns what strategy ``name`` answers to all queries."""
        options = RouteOptions(strategy=name, max_adapters=SET_SIZE, task_count=1)
        arms = {arm: place for place, arm in enumerate((*self._names, BASE))}
        shape = self._measured.queries.shape[:2]
        found = Routes(
            chosen=np.full((*shape, SET_SIZE), self._measured.base),
            weights=np.zeros((*shape, SET_SIZE)),
            single=np.zeros(shape, np.intp),
            nearest=np.zeros(shape, np.intp),
        )
        for row, texts in enumerate(self._queries):
            pool = self.pool(row, regime)
            for place, (vector, text) in enumerate(zip(self._measured.queries[row], texts, strict=True)):
                decision = decide(pool, Query(vector, text), options)
                for slot, (arm, weight) in enumerate(served(decision)):
                    found.chosen[row, place, slot] = arms[arm]
                    found.weights[row, place, slot] = weight
                found.single[row, place] = arms[decision.best_single.adapter_id]
                found.nearest[row, place] = task_ids().index(decision.tasks[0].task_id)
        return found

    def pool(self, row: int, regime: str) -> CompiledPool:
        """Returns the pool that the queries of a task meet."""
        tasks, adapters = self.taken(row, regime)
        return self._pool(tuple(np.flatnonzero(~tasks).tolist()), tuple(np.flatnonzero(~adapters).tolist()))

    def _compiled(self, tasks: tuple[int, ...], adapters: tuple[int, ...]) -> CompiledPool:
        names = [self._names[place] for place in adapters]
        pool = Pool(
            pool_id="lab",
            base_model="",
            base_model_aliases=(),
            untypical_policy="ROUTE",
            profile=fit_profile([self._examples[row] for row in tasks]),
            tasks=tuple(self._task(row, adapters) for row in tasks),
            adapters=tuple(Adapter(name, 1, name, routable=True) for name in names),
            backends=(),
        )
        return compile_pool(canonical(Snapshot("", 1, "", "", {"lab": pool})).pools["lab"])

    def _task(self, row: int, adapters: tuple[int, ...]) -> Task:
        represented = represent(self._measured.validation[row], self._texts[row])
        return Task(
            task_id=task_ids()[row],
            version=1,
            metric="exact_match",
            tags=frozenset(),
            example_count=len(self._texts[row]),
            centroid=represented.centroid,
            terms=represented.terms,
            affinities=self._matched(row, adapters),
        )

    def _affinities(self, row: int, adapters: tuple[int, ...]) -> tuple[Affinity, ...]:
        """What the worker would have measured of these adapters, and the base, on a task; best first."""
        measured = self._measured
        cells = np.ix_(np.array([*adapters, measured.base]), np.argsort(self._keys[row]))
        count = len(self._keys[row])
        truth = Table(
            measured.scores[row][cells],
            measured.likelihoods[row][cells],
            choosing_count(count),
            len(adapters),
        )
        run = run_strategy(strategy(DEFAULT_STRATEGY), truth)
        names = [*(self._names[place] for place in adapters), BASE]
        known = [
            (name, each)
            for name, each in zip(names, evidence(run.table, run.plan), strict=True)
            if each.count > 0
        ]
        known.sort(key=lambda pair: (-pair[1].shrunk_score, -_likelihood(pair[1]), pair[1].standard_error))
        return tuple(
            Affinity(name, int(name != BASE), each.shrunk_score, each.count, each.standard_error)
            for name, each in known
        )

    def _task_examples(self, row: int) -> TaskExamples:
        texts, vectors = self._texts[row], self._measured.validation[row]
        terms = [terms_of(term_frequencies(text)) for text in texts]
        return TaskExamples(task_ids()[row], vectors, terms, terms_of(represent(vectors, texts).terms))


def served(decision: Decision) -> list[tuple[str, float]]:
    """Returns (arm, weight) of what is served: the weighted set, or the base where none is."""
    return [(one.arm.adapter_id, one.weight) for one in decision.adapters] or [(BASE, 1.0)]


def _likelihood(found: Evidence) -> float:
    return found.likelihood if found.likelihood is not None else -np.inf
