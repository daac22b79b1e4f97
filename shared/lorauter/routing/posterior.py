"""The posterior over tasks, p(task | query) = softmax(a · dense + b · lexical), and how a, b are fitted.

Dense is the cosine of whitened vectors, lexical that of BM25 weights. Every example is scored with itself
left out of its task's centroid and terms, of the mean and of the whitening.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorauter.routing.left_out import LeftOut

SHRINKAGES = (0.1, 0.3, 0.5, 1.0)
"""What the whitening's shrinkage is chosen from, coarsely, as the loss hardly differs; 1 switches it off, and
ties go there."""

UNFITTED: Mapping[str, float] = {"shrinkage": 1.0, "dense_weight": 10.0, "lexical_weight": 10.0}
"""The constants where nothing can be told apart: about what sets of twenty examples fit."""

DECIMALS = 6
"""Of constants: what is judged is what a profile keeps."""

_RIDGE = 1e-4
_STEPS = 50

Floats = NDArray[np.float64]
Owners = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """``constants`` as in UNFITTED, and how they do on m examples, each left out.

    ``losses`` (m,) are log-losses, ``best`` (m,) the best scores, ``ranks`` (m,) how many tasks score above
    their own.
    """

    constants: Mapping[str, float]
    losses: Floats
    best: Floats
    ranks: Owners

    @property
    def loss(self) -> float:
        """The mean log-loss; 0 where nothing was scored."""
        return float(self.losses.mean()) if len(self.losses) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The constants newly ``fitted``, those from ``before`` if there were any, and the ``chosen`` ones."""

    fitted: Judged
    before: Judged | None
    chosen: Judged


def fit_posterior(left: LeftOut, before: Mapping[str, float]) -> Fit:
    """Fits on examples left out; constants from before stay unless the fitted ones are better, see stays().

    Convex in a and b for each shrinkage, so the least loss is found exactly. Of fewer than two tasks, or with
    nothing to score, the constants are UNFITTED, whatever there was before.
    """
    if left.lexical.shape[0] == 0 or left.lexical.shape[1] < 2:
        unfitted = judge(left, UNFITTED)
        return Fit(unfitted, None, unfitted)
    fitted = judge(left, _search(left))
    if not all(name in before for name in UNFITTED):
        return Fit(fitted, None, fitted)
    old = judge(left, {name: before[name] for name in UNFITTED})
    return Fit(fitted, old, old if stays(old.losses, fitted.losses) else fitted)


def stays(old: Floats, new: Floats) -> bool:
    """Returns whether old constants stay: unless new ones have a lower mean loss, beyond one standard error.

    ``old`` and ``new`` are the losses (m,) of the same examples; the error is that of their differences.
    """
    gained = old - new
    error = float(gained.std(ddof=1)) / len(gained) ** 0.5 if len(gained) > 1 else np.inf
    return float(gained.mean()) <= error


def judge(left: LeftOut, constants: Mapping[str, float]) -> Judged:
    """Returns how constants do on the scored examples."""
    if not len(left.own):
        return Judged(constants, np.zeros(0), np.zeros(0), np.zeros(0, np.intp))
    scores = constants["dense_weight"] * left.dense(constants["shrinkage"])
    scores += constants["lexical_weight"] * left.lexical
    own = scores[np.arange(len(left.own)), left.own]
    best = scores.max(axis=1)
    losses = np.log(np.exp(scores - best[:, None]).sum(axis=1)) + best - own
    return Judged(constants, losses, best, (scores > own[:, None]).sum(axis=1))


def _search(left: LeftOut) -> Mapping[str, float]:
    """Returns the constants of the least loss."""
    best: tuple[float, float, Floats] | None = None
    weights = None
    for shrinkage in sorted(SHRINKAGES if left.scatter is not None else (1.0,), reverse=True):
        weights, loss = fit_weights(left.dense(shrinkage), left.lexical, left.own, weights)
        if best is None or loss < best[0] - 1e-9:
            best = loss, shrinkage, weights
    assert best is not None
    names = ("shrinkage", "dense_weight", "lexical_weight")
    return {
        name: round(float(each), DECIMALS)
        for name, each in zip(names, best[1:2] + tuple(best[2]), strict=True)
    }


def fit_weights(
    dense: Floats, lexical: Floats, own: Owners, start: Floats | None = None
) -> tuple[Floats, float]:
    """Returns (a, b), both at least 0, of the least log-loss, and that loss: Newton's method, projected."""
    scales = np.array([max(float(channel.std()), 1e-6) for channel in (dense, lexical)])
    channels = np.stack([dense / scales[0], lexical / scales[1]])
    live = np.array([channel.std() > 0 for channel in (dense, lexical)])
    weights = np.where(live, 1.0 if start is None else start * scales, 0.0)
    loss, slope, curve = log_loss(channels, own, weights)
    for _ in range(_STEPS):
        free = live & ((weights > 0) | (slope < 0))
        if not free.any() or np.abs(slope[free]).max() < 1e-7:
            break
        step = np.zeros(2)
        step[free] = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        size = 1.0
        while size > 1e-6:
            tried = np.maximum(weights - size * step, 0.0)
            found = log_loss(channels, own, tried)
            if found[0] <= loss:
                break
            size /= 2
        if size <= 1e-6 or loss - found[0] < 1e-12:
            break
        weights, (loss, slope, curve) = tried, found
    return weights / scales, loss


def log_loss(channels: Floats, own: Owners, weights: Floats) -> tuple[float, Floats, Floats]:
    """Returns the ridged mean log-loss of (2, m, T) channels, its gradient (2,) and Hessian (2, 2)."""
    scores = weights[0] * channels[0] + weights[1] * channels[1]
    rows = np.arange(len(own))
    right = scores[rows, own]
    top = scores.max(axis=1, keepdims=True)
    scores -= top
    shares = np.exp(scores, out=scores)
    total = shares.sum(axis=1)
    shares /= total[:, None]
    loss = float(np.mean(np.log(total) + top[:, 0] - right)) + _RIDGE * float(weights @ weights)
    means = np.einsum("mt,cmt->cm", shares, channels)
    slope = np.mean(means - channels[:, rows, own], axis=1) + 2 * _RIDGE * weights
    curve = np.empty((2, 2))
    for i, j in ((0, 0), (0, 1), (1, 1)):
        both = np.einsum("mt,mt,mt->m", shares, channels[i], channels[j])
        curve[i, j] = curve[j, i] = float(np.mean(both - means[i] * means[j]))
    return loss, slope, curve + 2 * _RIDGE * np.eye(2)
