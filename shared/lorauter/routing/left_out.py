"""Scores of validation examples with every task, each example left out of all that it is scored on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorauter.routing.bm25 import NO_TERMS, lexicon
from lorauter.routing.examples import Gathered
from lorauter.routing.whitening import FEWEST_CENTRED, Packed, middle, packed, precision, scatter_of, unpacked
from lorauter.routing.words_left_out import lexical_scores

MOST_SCORED = 1 << 19
LEAST_SCORED = 256
"""(Example, task) pairs that a fit looks at, and examples that it looks at in any case: evenly spaced ones
stand for all."""

Floats = NDArray[np.float64]
Owners = NDArray[np.intp]


class LeftOut:
    """The m scored examples of T tasks: none is alone in its task.

    ``own`` (m,) are their tasks, ``lexical`` (m, T) their lexical scores, ``scatter`` what the whitening
    needs, None where no example differs from its task's mean.
    """

    def __init__(self, gathered: Gathered) -> None:
        counts = gathered.counts
        self.scatter: Packed | None = None
        self.own = np.zeros(0, np.intp)
        self.lexical = np.zeros((0, len(counts)))
        self._dense: dict[float, Floats] = {}
        if not len(counts):
            return
        raw = scatter_of(gathered.products, gathered.sums, counts)
        self.scatter = packed(raw) if raw is not None else None
        self.own, places = evenly_spaced(counts, max(LEAST_SCORED, MOST_SCORED // len(counts)))
        self.lexical = _lexical(gathered, self.own, places)
        self._centroids = gathered.sums / counts[:, None]
        self._examples = gathered.rows(self.own, places).astype(np.float64)
        self._size = counts[self.own][:, None].astype(np.float64)
        self._used = unpacked(self.scatter) if self.scatter is not None else np.eye(gathered.sums.shape[1])
        self._mean_square = mean_square(gathered.products, gathered.sums, counts)

    def dense(self, shrinkage: float) -> Floats:
        """Returns (m, T), the whitened cosines at a shrinkage; kept, so do not write to them."""
        if shrinkage not in self._dense:
            self._dense[shrinkage] = dense_scores(
                self._examples,
                self.own,
                self._size,
                self._centroids,
                precision(self._used, shrinkage),
                (1.0 - shrinkage) / max(self._mean_square, 1e-12),
            )
        return self._dense[shrinkage]


def evenly_spaced(counts: Owners, most: int) -> tuple[Owners, Owners]:
    """Returns tasks and places within them of at most ``most`` examples; none that is alone in its task."""
    owners = np.repeat(np.arange(len(counts)), counts)
    chosen = np.flatnonzero(counts[owners] > 1)
    if len(chosen) > most:
        chosen = chosen[np.linspace(0, len(chosen) - 1, most).astype(np.intp)]
    first = np.cumsum(counts) - counts
    return owners[chosen], chosen - first[owners[chosen]]


def mean_square(products: Floats, sums: Floats, counts: Owners) -> float:
    """Returns the mean over dimensions of Σ (x - its task's mean)²."""
    return float(np.trace(products) - (sums**2 / counts[:, None]).sum()) / len(products)


def _lexical(gathered: Gathered, owners: Owners, places: Owners) -> Floats:
    totals = [task.total for task in gathered.tasks]
    if not any(len(total.ids) for total in totals):
        return np.zeros((len(owners), len(totals)))
    held = [gathered.tasks[own].terms for own in owners]
    texts = [terms[place] if len(terms) else NO_TERMS for terms, place in zip(held, places, strict=True)]
    return lexical_scores(lexicon(totals), owners, totals, texts)


def dense_scores(
    examples: Floats, own: Owners, size: Floats, centroids: Floats, inverse: Floats, taken: float
) -> Floats:
    """Returns (m, T) whitened cosines, each example left out of its centroid, the mean and the scatter.

    ``size`` (m, 1) are the examples of their tasks, ``inverse`` (d, d) the precision. Leaving one out of the
    scatter is a change of rank one (Sherman and Morrison, 1950), ``taken`` times n / (n - 1); the scatter's
    scale, which changes by about 1 / N in all directions alike, stays.
    """
    apart = examples - centroids[own]
    mean = middle(centroids)
    tasks = centroids - mean
    # how far leaving the example out moves the mean of all centroids, as a share of ``apart``
    moved = -1.0 / (size[:, 0] - 1.0) / len(centroids) * (len(centroids) >= FEWEST_CENTRED)
    query = examples - mean - moved[:, None] * apart
    without = tasks[own] - apart / (size - 1.0) - moved[:, None] * apart  # the own centroid, less the mean
    lean, query_white = apart @ inverse, query @ inverse
    along_apart = _dots(apart, lean)
    along_query = _dots(query, lean)
    factor = taken * size[:, 0] / (size[:, 0] - 1.0)
    gain = factor / np.maximum(1.0 - factor * along_apart, 1e-6)

    along_tasks = lean @ tasks.T
    norms = _dots(tasks @ inverse, tasks)[None, :] - (2.0 * moved)[:, None] * along_tasks
    along_tasks -= (moved * along_apart)[:, None]
    norms += (moved**2 * along_apart)[:, None] + gain[:, None] * along_tasks**2
    products = query_white @ tasks.T
    products += (gain * along_query)[:, None] * along_tasks - (moved * along_query)[:, None]

    rows = np.arange(len(own))
    along_own = _dots(lean, without)
    products[rows, own] = _dots(query_white, without) + gain * along_query * along_own
    norms[rows, own] = _dots(without @ inverse, without) + gain * along_own**2
    own_norm = _dots(query_white, query) + gain * along_query**2
    lengths = np.sqrt(np.maximum(norms, 0.0) * np.maximum(own_norm, 0.0)[:, None])
    scores: Floats = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 1e-12)
    return scores


def _dots(left: Floats, right: Floats) -> Floats:
    sums: Floats = np.einsum("ij,ij->i", left, right)
    return sums
