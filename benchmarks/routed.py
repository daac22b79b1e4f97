"""What routing makes of measured affinities: the expected score of the best single adapter, by regime."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.flan import Flan, Floats
from lorauter.encoder import DEFAULT_ENCODER, load_encoder
from lorauter.matching import Evidence
from lorauter.routing import (
    CompiledPool,
    RouteOptions,
    TaskExamples,
    compile_pool,
    decide,
    fit_profile,
    represent,
)
from lorauter.routing.model import Pool, Task
from lorauter.routing.strategies.strategy import Query

REGIMES = ("non_ood", "semi_ood", "ood", "unseen_cluster")

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]
Matrix = Sequence[Sequence[Evidence]]
"""By task, then by adapter: what a matching found; a count of 0 means not measured."""


class RoutedFlan:
    """Routes FLAN's queries by expected utility: the project's posterior over tasks, times what was measured.

    Each query goes to the adapter a of the largest Σ p(t | query) R[t, a], R being a task's scores as shares
    of its best. The posterior does not depend on what was measured, so it is taken once.
    """

    def __init__(self, flan: Flan, cache: Path | None = None) -> None:
        """Encodes all inputs, which takes a minute or more, unless the directory ``cache`` holds them."""
        self._flan = flan
        self._validation, self._queries = _encoded(flan, cache)
        self._tasks = [self._task(name) for name in flan.tasks]
        self._posteriors = {regime: self._posterior(regime) for regime in REGIMES}

    def percent_of_oracle(self, matrix: Matrix) -> dict[str, float]:
        """Returns {regime: % of Oracle} of the best single adapter.

        Semi-OOD bars a query's own adapter, OOD its task as well, unseen_cluster its cluster's tasks and
        adapters; in the last two the profile is refitted without what is barred.
        """
        worth = np.array([[each.shrunk_score if each.count else 0.0 for each in row] for row in matrix])
        best = worth.max(axis=1, keepdims=True)
        shares = np.divide(worth, best, out=np.zeros_like(worth), where=best > 0)
        return {regime: self._score(shares, regime) for regime in REGIMES}

    def of_random(self) -> dict[str, float]:
        """Returns the same for an adapter drawn at random of those that are not barred: its expectation."""
        flan = self._flan
        found = {}
        for regime in REGIMES:
            means = {}
            for row, name in enumerate(flan.tasks):
                allowed = ~self._barred(row, regime)[1]
                means[name] = [float(flan.affinity[row, allowed].mean())] * len(flan.queries[name])
            found[regime] = flan.percent_of_oracle(means)
        return found

    def _score(self, shares: Floats, regime: str) -> float:
        scores = {}
        for row, (name, posterior) in enumerate(zip(self._flan.tasks, self._posteriors[regime], strict=True)):
            utilities = posterior @ shares
            utilities[:, self._barred(row, regime)[1]] = -1.0
            scores[name] = self._flan.affinity[row, utilities.argmax(axis=1)].tolist()
        return self._flan.percent_of_oracle(scores)

    def _posterior(self, regime: str) -> list[Floats]:
        """Returns by task (queries, tasks), the probabilities that the project's decisions give."""
        pools: dict[bytes, CompiledPool] = {}
        columns = {name: column for column, name in enumerate(self._flan.tasks)}
        found = []
        for row, name in enumerate(self._flan.tasks):
            barred = self._barred(row, regime)[0]
            if barred.tobytes() not in pools:
                pools[barred.tobytes()] = compile_pool(self._pool(barred))
            posterior = np.zeros((len(self._queries[name]), len(columns)))
            for place, vector in enumerate(self._queries[name]):
                query = Query(vector, self._flan.queries[name][place])
                options = RouteOptions(task_count=len(columns))
                for match in decide(pools[barred.tobytes()], query, options).tasks:
                    posterior[place, columns[match.task_id]] = match.probability
            found.append(posterior)
        return found

    def _barred(self, row: int, regime: str) -> tuple[Mask, Mask]:
        """Returns which tasks and which adapters a regime bars for the queries of a task."""
        clusters = np.array(self._flan.clusters)
        nothing = np.zeros(len(clusters), dtype=bool)
        own = np.arange(len(clusters)) == row
        mates: Mask = clusters == clusters[row]
        return {
            "non_ood": (nothing, nothing),
            "semi_ood": (nothing, own),
            "ood": (own, own),
            "unseen_cluster": (mates, mates),
        }[regime]

    def _pool(self, barred: Mask) -> Pool:
        kept = [task for task, is_barred in zip(self._tasks, barred, strict=True) if not is_barred]
        return Pool(
            pool_id="flan",
            base_model="",
            base_model_aliases=(),
            untypical_policy="ROUTE",
            profile=fit_profile(
                [TaskExamples(task.task_id, self._validation[task.task_id]) for task in kept]
            ),
            tasks=tuple(kept),
            adapters=(),
            backends=(),
        )

    def _task(self, name: str) -> Task:
        vectors, texts = self._validation[name], self._flan.validation[name]
        represented = represent(vectors, texts)
        return Task(
            task_id=name,
            version=1,
            metric="exact_match",
            tags=frozenset(),
            example_count=len(texts),
            centroid=represented.centroid,
            terms=represented.terms,
            affinities=(),
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
