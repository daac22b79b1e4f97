"""Which compositions of a task's best adapters are worth measuring, and whether one beats the best single."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorauter.identifiers import COMPOSITE_PREFIX
from lorauter.matching.evidence import mean_and_error
from lorauter.matching.model import Floats
from lorauter.matching.paired import standard_errors

FRESH = 32
"""Judging examples that compositions are measured on at most."""

SIZES = (2, 3)
"""How many of the best adapters a candidate is made of."""

DECIMALS = 2
"""Weights are rounded to so many decimals, so that a little more evidence makes no other composition."""

Weights = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A composition's ``score``, mean of ``count`` examples in 0..1, with its ``standard_error``.

    ``gain``: the mean paired difference to the best single adapter, -1..1, with ``gain_error``, the standard
    error of lorauter.matching.paired.
    """

    score: float
    count: int
    standard_error: float
    gain: float
    gain_error: float

    @property
    def wins(self) -> bool:
        """Whether the composition beats the best single adapter beyond one standard error."""
        return self.gain > self.gain_error


def candidates(scores: Floats) -> list[Weights]:
    """Returns the weights of each candidate for the adapters of ``scores``, best first.

    ``scores``: (S, m) on the examples that chose them, m ≥ 1, 0..1, NaN where not measured. A candidate of
    k weights is of the first k adapters: the two and the three best, with equal weights and with weights in
    proportion to the probability that an adapter is the best of them. Two that are the same are one; none has
    a weight of 0; weights sum to 1. There is none where S < 2.
    """
    shared = scores[:, ~np.isnan(scores).any(axis=0)]
    found: list[Weights] = []
    for size in SIZES:
        if size > len(scores):
            break
        options = [np.full(size, 1 / size)]
        if shared.shape[1]:
            options.append(chances_of_being_best(shared[:size]))
        for weights in options:
            rounded = _rounded(weights)
            if 0.0 not in rounded and rounded not in found:
                found.append(rounded)
    return found


def chances_of_being_best(scores: Floats) -> Floats:
    """Returns (S,), the probability that each row of (S, m), m ≥ 1, has the largest true mean; they sum to 1.

    Means are normal and independent with the standard errors of lorauter.matching.paired, which are above 0
    however alike the scores are.
    """
    means = scores.mean(axis=1)
    errors = np.array([float(standard_errors(row[None])[0][0]) for row in scores])
    grid = np.linspace((means - 6 * errors).min(), (means + 6 * errors).max(), 2001)
    standard = (grid - means[:, None]) / errors[:, None]
    density = np.exp(-0.5 * standard**2) / errors[:, None]
    below = 0.5 * (1 + np.vectorize(math.erf)(standard / math.sqrt(2)))
    others = np.array([np.prod(np.delete(below, row, axis=0), axis=0) for row in range(len(means))])
    mass: Floats = (density * others).sum(axis=1)
    chances: Floats = mass / mass.sum()
    return chances


def judged(single: Floats, composed: Floats) -> Judgement:
    """Returns how a composition did against the best single adapter, (m,) scores each on the same m ≥ 1
    examples that chose neither."""
    score, error = mean_and_error(composed.tolist())
    differences = composed - single
    errors, _ = standard_errors(differences[None])
    return Judgement(score, len(composed), error, float(differences.mean()), float(errors[0]))


def set_name(members: Sequence[tuple[str, float]]) -> str:
    """Returns ``mix-`` and 16 hex digits: the name of (digest, weight) pairs, in whatever order."""
    content = json.dumps(sorted(members), separators=(",", ":"))
    return COMPOSITE_PREFIX + hashlib.sha256(content.encode()).hexdigest()[:16]


def _rounded(weights: Floats) -> Weights:
    """Returns the weights rounded; the first takes what rounding leaves."""
    others = [round(float(weight), DECIMALS) for weight in weights[1:]]
    return (round(1 - sum(others), DECIMALS), *others)
