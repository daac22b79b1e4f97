"""The posterior over tasks, p(task | query) = softmax(a · dense + b · lexical), and how a, b are fitted.

Dense is the cosine of whitened vectors, lexical that of BM25 weights. Every example is scored with itself
left out of its task's centroid and terms, of the mean and of the whitening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorauter.routing.bm25 import Terms, lexicon
from lorauter.routing.whitening import (
    FEWEST_CENTRED,
    Packed,
    middle,
    packed,
    pooled_scatter,
    precision,
    unpacked,
)

SHRINKAGES = (0.1, 0.3, 0.5, 1.0)
"""What the whitening's shrinkage is chosen from, coarsely, as the loss hardly differs; 1 switches it off, and
ties go there."""

UNFITTED: Mapping[str, float] = {"shrinkage": 1.0, "dense_weight": 10.0, "lexical_weight": 10.0}
"""The constants where nothing can be scored: about what sets of twenty examples fit."""

MOST_SCORED = 1 << 19
LEAST_SCORED = 256
"""(Example, task) pairs that a fit looks at, and examples that it looks at in any case: evenly spaced ones
stand for all."""

_RIDGE = 1e-4
_STEPS = 50

Floats = NDArray[np.float64]
Owners = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """``constants`` as in UNFITTED, the ``scatter`` that whitening needs, and how the fit did.

    ``best`` (m,) are the best scores of the examples, each left out, and ``ranks`` (m,) how many tasks score
    above their own. ``loss`` is their mean log-loss.
    """

    constants: Mapping[str, float]
    scatter: Packed | None
    best: Floats
    ranks: Owners
    loss: float


def fit_posterior(
    vectors: Sequence[NDArray[np.float32]], terms: Sequence[Sequence[Terms]], totals: Sequence[Terms]
) -> Fit:
    """Fits on T tasks' examples: unit vectors (n, d), their terms (or none at all), and each task's terms.

    Convex in a and b for each shrinkage, so the least loss is found exactly.
    """
    counts = np.array([len(each) for each in vectors], dtype=np.intp)
    scored = _chosen(counts)
    nothing = Fit(UNFITTED, None, np.zeros(0), np.zeros(0, np.intp), 0.0)
    if len(counts) == 0:
        return nothing
    stacked = np.concatenate(vectors).astype(np.float64)
    owners = np.repeat(np.arange(len(counts)), counts)
    centroids = np.stack([each.mean(axis=0, dtype=np.float64) for each in vectors])
    raw = pooled_scatter(stacked, owners, centroids)
    scatter = packed(raw) if raw is not None else None
    if len(scored) == 0:
        return Fit(UNFITTED, scatter, nothing.best, nothing.ranks, 0.0)
    used = unpacked(scatter) if scatter is not None else np.eye(stacked.shape[1])
    own = owners[scored]
    rows = np.arange(len(scored))
    lexical = _lexical_scores(scored, owners, counts, terms, totals)
    mean_square = float(((stacked - centroids[owners]) ** 2).sum()) / stacked.shape[1]
    best: tuple[float, float, Floats, Floats] | None = None
    for shrinkage in sorted(SHRINKAGES if scatter is not None else (1.0,), reverse=True):
        dense = _dense_scores(stacked[scored], own, counts, centroids, used, shrinkage, mean_square)
        weights, loss = _fit_weights(dense, lexical, own)
        if best is None or loss < best[0] - 1e-9:
            best = loss, shrinkage, weights, weights[0] * dense + weights[1] * lexical
    assert best is not None
    loss, shrinkage, weights, scores = best
    before = (scores > scores[rows, own][:, None]).sum(axis=1)
    constants = {
        "shrinkage": shrinkage,
        "dense_weight": float(weights[0]),
        "lexical_weight": float(weights[1]),
    }
    return Fit(constants, scatter, scores.max(axis=1), before, loss)


def _chosen(counts: Owners) -> Owners:
    """Returns the positions, among all examples, of those that are scored: none that is alone in its task."""
    positions = np.flatnonzero(np.repeat(counts > 1, counts))
    most = max(LEAST_SCORED, MOST_SCORED // max(1, len(counts)))
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).astype(np.intp)]


def _lexical_scores(
    scored: Owners,
    owners: Owners,
    counts: Owners,
    terms: Sequence[Sequence[Terms]],
    totals: Sequence[Terms],
) -> Floats:
    """Returns (m, T) lexical scores of examples, each left out of its task; 0 where there are no terms."""
    scores = np.zeros((len(scored), len(counts)))
    if not any(len(total.ids) for total in totals):
        return scores
    words = lexicon(totals)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    for row, place in enumerate(scored):
        task = int(owners[place])
        if len(terms[task]):
            text = terms[task][place - first[task]]
            scores[row] = words.scores_without(task, totals[task], text)
    return scores


def _dense_scores(
    examples: Floats,
    own: Owners,
    counts: Owners,
    centroids: Floats,
    scatter: Floats,
    shrinkage: float,
    mean_square: float,
) -> Floats:
    """Returns (m, T) whitened cosines, each example left out of its centroid, the mean and the scatter.

    Leaving one out of the scatter is a change of rank one (Sherman and Morrison, 1950); the scatter's scale,
    which changes by about 1 / N in all directions alike, stays. ``mean_square`` is that scale.
    """
    size = counts[own][:, None].astype(np.float64)
    inverse = precision(scatter, shrinkage)
    apart = examples - centroids[own]
    moves = len(counts) >= FEWEST_CENTRED
    shift = -apart / (size - 1.0) / len(counts) * moves  # of the mean of all centroids
    mean = middle(centroids)
    tasks = centroids - mean
    query = examples - mean - shift
    without = tasks[own] - apart / (size - 1.0) - shift  # the own centroid, less the mean
    lean = apart @ inverse
    taken = (1.0 - shrinkage) * size[:, 0] / (size[:, 0] - 1.0) / max(mean_square, 1e-12)
    gain = taken / np.maximum(1.0 - taken * np.einsum("ij,ij->i", apart, lean), 1e-6)

    query_white, shift_white = query @ inverse, shift @ inverse
    along_query = np.einsum("ij,ij->i", query, lean)
    along_tasks = lean @ tasks.T - np.einsum("ij,ij->i", lean, shift)[:, None]
    products = query_white @ tasks.T - np.einsum("ij,ij->i", query_white, shift)[:, None]
    products += (gain * along_query)[:, None] * along_tasks
    norms = np.einsum("ij,ij->i", tasks @ inverse, tasks)[None, :] - 2.0 * shift_white @ tasks.T
    norms += np.einsum("ij,ij->i", shift_white, shift)[:, None] + gain[:, None] * along_tasks**2

    rows = np.arange(len(own))
    along_own = np.einsum("ij,ij->i", lean, without)
    products[rows, own] = np.einsum("ij,ij->i", query_white, without) + gain * along_query * along_own
    norms[rows, own] = np.einsum("ij,ij->i", without @ inverse, without) + gain * along_own**2
    own_norm = np.einsum("ij,ij->i", query_white, query) + gain * along_query**2
    lengths = np.sqrt(np.maximum(norms, 0.0) * np.maximum(own_norm, 0.0)[:, None])
    scores: Floats = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 1e-12)
    return scores


def _fit_weights(dense: Floats, lexical: Floats, own: Owners) -> tuple[Floats, float]:
    """Returns (a, b), both at least 0, of the least log-loss, and that loss: Newton's method, projected."""
    scales = np.array([max(float(channel.std()), 1e-6) for channel in (dense, lexical)])
    channels = np.stack([dense / scales[0], lexical / scales[1]])
    live = np.array([channel.std() > 0 for channel in (dense, lexical)])
    weights = np.where(live, 1.0, 0.0)
    loss, slope, curve = _loss(channels, own, weights)
    for _ in range(_STEPS):
        free = live & ((weights > 0) | (slope < 0))
        if not free.any() or np.abs(slope[free]).max() < 1e-7:
            break
        step = np.zeros(2)
        step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        size = 1.0
        while size > 1e-6:
            tried = np.maximum(weights - size * step, 0.0)
            found = _loss(channels, own, tried)
            if found[0] <= loss:
                break
            size /= 2
        if size <= 1e-6 or loss - found[0] < 1e-12:
            break
        weights, (loss, slope, curve) = tried, found
    return weights / scales, loss


def _loss(channels: Floats, own: Owners, weights: Floats) -> tuple[float, Floats, Floats]:
    """Returns the ridged mean log-loss with its gradient (2,) and Hessian (2, 2)."""
    scores = np.tensordot(weights, channels, axes=1)
    rows = np.arange(len(own))
    top = scores.max(axis=1, keepdims=True)
    mass = np.exp(scores - top)
    total = mass.sum(axis=1)
    shares = mass / total[:, None]
    loss = float(np.mean(np.log(total) + top[:, 0] - scores[rows, own])) + _RIDGE * float(weights @ weights)
    means = np.stack([(shares * channel).sum(axis=1) for channel in channels])
    slope = np.mean(means - channels[:, rows, own], axis=1) + 2 * _RIDGE * weights
    curve = np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            both = (shares * channels[i] * channels[j]).sum(axis=1)
            curve[i, j] = float(np.mean(both - means[i] * means[j]))
    return loss, slope, curve + 2 * _RIDGE * np.eye(2)
