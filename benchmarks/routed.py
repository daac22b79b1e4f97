"""What routing makes of measured affinities: the expected score of the best single adapter, by regime."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.flan import Flan
from lorauter.encoder import DEFAULT_ENCODER, load_encoder
from lorauter.matching import Evidence
from lorauter.routing import (
    CompiledPool,
    RouteOptions,
    TaskExamples,
    TaskRepresentation,
    compile_pool,
    decide,
    fit_profile,
    represent,
)
from lorauter.routing.model import Adapter, Affinity, Pool, Profile, Task
from lorauter.routing.strategies.strategy import Query

REGIMES = ("non_ood", "semi_ood", "ood", "unseen_cluster")

Vectors = NDArray[np.float32]
Matrix = Sequence[Sequence[Evidence]]
"""By task, then by adapter: what a matching found; a count of 0 means not measured."""


class RoutedFlan:
    """Routes FLAN's queries with the project's routing core."""

    def __init__(self, flan: Flan, cache: Path | None = None) -> None:
        """Encodes all inputs, which takes a minute or more, unless the directory ``cache`` holds them."""
        self._flan = flan
        self._validation, self._queries = _encoded(flan, cache)
        self._represented: dict[str, TaskRepresentation] = {
            name: represent(self._validation[name], flan.validation[name]) for name in flan.tasks
        }
        self._profiles: dict[frozenset[str], Profile] = {}

    def percent_of_oracle(self, matrix: Matrix) -> dict[str, float]:
        """Returns {regime: % of Oracle} of best_single, by expected utility on ``matrix``.

        Semi-OOD bars a query's own adapter, OOD its task as well, unseen_cluster its cluster's tasks and
        adapters; the last two refit the profile without what is barred.
        """
        tasks = [self._task(name, found) for name, found in zip(self._flan.tasks, matrix, strict=True)]
        return {regime: self._score(tasks, regime) for regime in REGIMES}

    def of_random(self) -> dict[str, float]:
        """Returns the same for an adapter drawn at random of those that are not barred: its expectation."""
        flan = self._flan
        found = {}
        for regime in REGIMES:
            means = {}
            for row, name in enumerate(flan.tasks):
                barred = self._barred(name, regime)[1]
                allowed = [column for column, task in enumerate(flan.tasks) if task not in barred]
                mean = float(flan.affinity[row, allowed].mean())
                means[name] = [mean] * len(flan.queries[name])
            found[regime] = flan.percent_of_oracle(means)
        return found

    def _score(self, measured: Sequence[Task], regime: str) -> float:
        flan = self._flan
        columns = {name: column for column, name in enumerate(flan.tasks)}
        pools: dict[frozenset[str], CompiledPool] = {}
        scores: dict[str, list[float]] = {}
        for row, name in enumerate(flan.tasks):
            tasks, adapters = self._barred(name, regime)
            if tasks not in pools:
                pools[tasks] = compile_pool(self._pool(measured, tasks))
            options = RouteOptions(exclude_adapters=adapters, task_count=1)
            scores[name] = []
            for vector, text in zip(self._queries[name], flan.queries[name], strict=True):
                single = decide(pools[tasks], Query(vector, text), options).best_single
                column = columns.get(single.adapter_id)
                scores[name].append(0.0 if column is None else float(flan.affinity[row, column]))
        return flan.percent_of_oracle(scores)

    def _barred(self, name: str, regime: str) -> tuple[frozenset[str], frozenset[str]]:
        """Returns the tasks and the adapters that a regime bars for the queries of task ``name``."""
        own = frozenset([name])
        by_name = dict(zip(self._flan.tasks, self._flan.clusters, strict=True))
        mates = frozenset(task for task, cluster in by_name.items() if cluster == by_name[name])
        nothing: frozenset[str] = frozenset()
        return {
            "non_ood": (nothing, nothing),
            "semi_ood": (nothing, own),
            "ood": (own, own),
            "unseen_cluster": (mates, mates),
        }[regime]

    def _pool(self, measured: Sequence[Task], barred: frozenset[str]) -> Pool:
        flan = self._flan
        kept = [task for task in measured if task.task_id not in barred]
        if barred not in self._profiles:
            examples = [TaskExamples(task.task_id, self._validation[task.task_id]) for task in kept]
            self._profiles[barred] = fit_profile(examples)
        return Pool(
            pool_id="flan",
            base_model="",
            base_model_aliases=(),
            untypical_policy="ROUTE",
            profile=self._profiles[barred],
            tasks=tuple(kept),
            adapters=tuple(Adapter(name, 1, name, routable=True) for name in flan.tasks),
            backends=(),
        )

    def _task(self, name: str, found: Sequence[Evidence]) -> Task:
        affinities = [
            Affinity(adapter, 1, evidence.shrunk_score, evidence.count, evidence.standard_error)
            for adapter, evidence in zip(self._flan.tasks, found, strict=True)
            if evidence.count
        ]
        return Task(
            task_id=name,
            version=1,
            metric="exact_match",
            tags=frozenset(),
            example_count=len(self._validation[name]),
            centroid=self._represented[name].centroid,
            terms=self._represented[name].terms,
            affinities=tuple(sorted(affinities, key=lambda affinity: -affinity.score)),
        )


def _encoded(flan: Flan, cache: Path | None) -> tuple[dict[str, Vectors], dict[str, Vectors]]:
    """Returns the unit vectors of the validation inputs and of the queries, by task."""
    encoder = load_encoder(DEFAULT_ENCODER)
    groups = [inputs[task] for inputs in (flan.validation, flan.queries) for task in flan.tasks]
    texts = [text for group in groups for text in group]
    digest = hashlib.sha256("\0".join([encoder.digest, *texts]).encode()).hexdigest()
    path = cache / f"flan-vectors-{digest[:16]}.npy" if cache else None
    if path is not None and path.exists():
        vectors: Vectors = np.load(path)
    else:
        vectors = encoder.encode(texts)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, vectors)
    parts = np.split(vectors, np.cumsum([len(group) for group in groups])[:-1])
    count = len(flan.tasks)
    return dict(zip(flan.tasks, parts[:count], strict=True)), dict(
        zip(flan.tasks, parts[count:], strict=True)
    )
