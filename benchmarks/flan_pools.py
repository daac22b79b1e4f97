"""FLAN as pools that the router decides on, with what a regime bars left out and the profile refitted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.flan import Flan
from lorauter.encoder import DEFAULT_ENCODER, load_encoder
from lorauter.index.codec import canonical
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
from lorauter.routing.fitting import refit
from lorauter.routing.model import Adapter, Affinity, Pool, Profile, Snapshot, Task
from lorauter.routing.strategies.strategy import Query

REGIMES = ("non_ood", "semi_ood", "ood", "unseen_cluster")

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Unit vectors (n, d) of the validation inputs and of the queries, by task."""

    validation: Mapping[str, Vectors]
    queries: Mapping[str, Vectors]


class FlanPools:
    """Decides FLAN's queries on snapshots of its tasks, adapters and measured scores."""

    def __init__(self, flan: Flan, embedded: Embedded) -> None:
        self.flan = flan
        self._embedded = embedded
        self._tasks = [self._task(row) for row in range(len(flan.tasks))]
        self._examples = [self._task_examples(name) for name in flan.tasks]
        self._pools: dict[bytes, CompiledPool] = {}

    def decisions(self, regime: str, strategy: str) -> Iterator[tuple[int, list[Decision]]]:
        """Yields each task's row with the decisions of its queries.

        Semi-OOD bars a query's own adapter, OOD its task as well, unseen_cluster its cluster's tasks and
        adapters; in the last two the profile is refitted without what is barred.
        """
        flan = self.flan
        for row, name in enumerate(flan.tasks):
            tasks, adapters = self.barred(row, regime)
            pool = self._pool(tasks)
            options = RouteOptions(
                strategy=strategy,
                max_adapters=1,
                exclude_adapters=frozenset(np.array(flan.tasks)[adapters].tolist()),
                task_count=len(flan.tasks),
            )
            pairs = zip(self._embedded.queries[name], flan.queries[name], strict=True)
            yield row, [decide(pool, Query(vector, text), options) for vector, text in pairs]

    def barred(self, row: int, regime: str) -> tuple[Mask, Mask]:
        """Returns which tasks and which adapters a regime bars for the queries of a task."""
        clusters = np.array(self.flan.clusters)
        nothing = np.zeros(len(clusters), dtype=bool)
        own = np.arange(len(clusters)) == row
        mates: Mask = clusters == clusters[row]
        return {
            "non_ood": (nothing, nothing),
            "semi_ood": (nothing, own),
            "ood": (own, own),
            "unseen_cluster": (mates, mates),
        }[regime]

    def arrivals(self) -> Iterator[tuple[int, list[str], list[str], float]]:
        """Yields each task's row with the adapters of all queries, in order, before and after it came.

        The last is 1 where the constants from before stayed, else 0. All adapters are there throughout.
        """
        everything = np.zeros(len(self.flan.tasks), dtype=bool)
        for row in range(len(self.flan.tasks)):
            before = self._pool(np.arange(len(everything)) == row)
            found = refit(self._examples, before.profile)
            after = self._compiled(everything, found.profile)
            yield row, self._singles(before), self._singles(after), found.report["kept"]

    def _singles(self, pool: CompiledPool) -> list[str]:
        options = RouteOptions(max_adapters=1, task_count=1)
        queries = [
            Query(vector, text)
            for name in self.flan.tasks
            for vector, text in zip(self._embedded.queries[name], self.flan.queries[name], strict=True)
        ]
        return [decide(pool, query, options).best_single.adapter_id for query in queries]

    def _pool(self, barred: Mask) -> CompiledPool:
        key = barred.tobytes()
        if key not in self._pools:
            profile = fit_profile([self._examples[row] for row in np.flatnonzero(~barred)])
            self._pools[key] = self._compiled(barred, profile)
        return self._pools[key]

    def _compiled(self, barred: Mask, profile: Profile) -> CompiledPool:
        pool = Pool(
            pool_id="flan",
            base_model="",
            base_model_aliases=(),
            untypical_policy="ROUTE",
            profile=profile,
            tasks=tuple(self._tasks[row] for row in np.flatnonzero(~barred)),
            adapters=tuple(Adapter(name, 1, name, routable=True) for name in self.flan.tasks),
            backends=(),
        )
        snapshot = canonical(Snapshot("", 1, "", "", {"flan": pool}))
        return compile_pool(snapshot.pools["flan"])

    def _task_examples(self, name: str) -> TaskExamples:
        texts, vectors = self.flan.validation[name], self._embedded.validation[name]
        terms = [terms_of(term_frequencies(text)) for text in texts]
        return TaskExamples(name, vectors, terms, terms_of(represent(vectors, texts).terms))

    def _task(self, row: int) -> Task:
        name = self.flan.tasks[row]
        texts = self.flan.validation[name]
        represented = represent(self._embedded.validation[name], texts)
        scores = self.flan.affinity[row]
        ranked = sorted(zip(self.flan.tasks, scores.tolist(), strict=True), key=lambda pair: -pair[1])
        return Task(
            task_id=name,
            version=1,
            metric="exact_match",
            tags=frozenset(),
            example_count=len(texts),
            centroid=represented.centroid,
            terms=represented.terms,
            affinities=tuple(Affinity(adapter, 1, score, 200, 0.0) for adapter, score in ranked),
        )


def embedded(flan: Flan, cache: Path | None) -> Embedded:
    """Encodes all inputs, which takes a minute or more, unless the directory ``cache`` holds them."""
    encoder = load_encoder(DEFAULT_ENCODER)
    groups = [*flan.validation.values(), *flan.queries.values()]
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
    return by_task(flan, vectors)


def by_task(flan: Flan, vectors: Vectors) -> Embedded:
    """Returns rows, those of all validation inputs before those of all queries, as the files have them."""
    sizes = [len(texts) for texts in (*flan.validation.values(), *flan.queries.values())]
    parts: Sequence[Vectors] = np.split(vectors, np.cumsum(sizes)[:-1])
    count = len(flan.validation)
    return Embedded(
        dict(zip(flan.validation, parts[:count], strict=True)),
        dict(zip(flan.queries, parts[count:], strict=True)),
    )
