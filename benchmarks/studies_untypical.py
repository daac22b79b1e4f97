"""What to do with untypical queries: rules that widen the posterior, calibration, risk against coverage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.flan import Flan, Floats
from benchmarks.studies_lab import Rows, conformal
from benchmarks.studies_runs import Outcome, Run, paired_means, percent, served, utilities_of
from lorauter.routing.fitting import TYPICALITY_LEVELS

ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2)
FEW = (20, 60, 960)
TRIALS = 400
COVERAGES = np.linspace(0.2, 1.0, 41)
"""Fewer queries come from too few clusters to say anything."""

Weight = Callable[[Outcome], Floats]
"""How much of the posterior is spread evenly over all tasks, (n,), 0 to 1."""


@dataclass(frozen=True, slots=True)
class Fading:
    """(1 - typicality) to a power."""

    power: int

    def __call__(self, asked: Outcome) -> Floats:
        """See Weight."""
        weight: Floats = (1.0 - asked.typicality) ** self.power
        return weight


@dataclass(frozen=True, slots=True)
class Below:
    """As much where typicality is at most a level, nothing above."""

    level: float
    weight: float

    def __call__(self, asked: Outcome) -> Floats:
        """See Weight."""
        return np.where(asked.typicality <= self.level, self.weight, 0.0)


@dataclass(frozen=True, slots=True)
class Always:
    """The same for all."""

    weight: float

    def __call__(self, asked: Outcome) -> Floats:
        """See Weight."""
        return np.full(len(asked.own), self.weight)


@dataclass(frozen=True, slots=True)
class Unsure:
    """(1 - the largest probability) to a power."""

    power: int

    def __call__(self, asked: Outcome) -> Floats:
        """See Weight."""
        weight: Floats = (1.0 - asked.posterior.max(axis=1)) ** self.power
        return weight


FADING = {f"(1 - typicality)^{power}": Fading(power) for power in (2, 4, 8, 16, 32)}
BELOW = {
    f"{weight:g} where typicality ≤ {level:g}": Below(level, weight)
    for level in (0.01, 0.02, 0.05, 0.1)
    for weight in (0.3, 1.0)
}
ALWAYS = {f"{weight:g} for all": Always(weight) for weight in (0.05, 0.1, 0.2)}
UNSURE = {f"(1 - best probability)^{power}": Unsure(power) for power in (2, 4, 8)}
HEATS = {
    f"posterior^{power:g} where typicality ≤ {level:g}": (level, power)
    for level in (0.1, 1.0)
    for power in (0.5, 0.8, 1.2, 1.5, 2.0)
}
"""Level and power, see by_heat()."""

RULES: Mapping[str, Weight] = {**FADING, **BELOW, **ALWAYS, **UNSURE}


def widened(asked: Outcome, weight: Floats) -> Outcome:
    """Returns the outcome with ``weight`` (n,) of its posterior spread evenly over all its tasks."""
    taking_part = asked.posterior > 0
    even = taking_part / taking_part.sum(axis=1, keepdims=True)
    return replace(asked, posterior=(1 - weight)[:, None] * asked.posterior + weight[:, None] * even)


def tempered(asked: Outcome, power: Floats) -> Outcome:
    """Returns the outcome with its posterior to a ``power`` (n,), scaled to sum to 1."""
    mass = asked.posterior ** power[:, None] * (asked.posterior > 0)
    return replace(asked, posterior=mass / mass.sum(axis=1, keepdims=True))


def by_rule(run: Run, rule: Weight) -> Run:
    """Returns a run with every posterior widened by a rule."""
    return {key: widened(asked, rule(asked)) for key, asked in run.items()}


def by_heat(run: Run, level: float, power: float) -> Run:
    """Returns a run with posteriors to a power where typicality is at most a level."""
    return {
        key: tempered(asked, np.where(asked.typicality <= level, power, 1.0)) for key, asked in run.items()
    }


def flagged(own: Rows, typicality: Floats) -> dict[str, dict[str, float]]:
    """Returns by α the share of known queries with a typicality of α or less, and where it may lie.

    Within ``low`` and ``high`` a share lies with 95 % if each query is flagged with chance α, whatever its
    task. ``error`` is the standard error over tasks, which is larger: queries of a task are alike.
    """
    count = len(typicality)
    found = {}
    for alpha in ALPHAS:
        half = 1.96 * float(np.sqrt(alpha * (1 - alpha) / count))
        hits = (typicality <= alpha).astype(float)
        found[str(alpha)] = {
            "share": float(hits.mean()),
            "low": max(0.0, alpha - half),
            "high": alpha + half,
            "error": paired_means(own, hits, np.zeros(count))[1],
        }
    return found


def flagged_of_few(seed: int) -> dict[str, dict[str, float]]:
    """Returns what is flagged of queries that are like n examples, by what typicality is and n, then by α.

    "between quantiles" is what a profile does: the n scores' quantiles, interpolated. "by rank" is
    conformal(), and "smoothed rank" brings the former to it. Only ranks matter, so scores are drawn evenly.
    """
    random = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    for count in FEW:
        values: dict[str, list[Floats]] = {}
        for _ in range(TRIALS):
            known, asked = np.sort(random.random(count)), random.random(TRIALS)
            between = np.interp(asked, np.quantile(known, TYPICALITY_LEVELS), TYPICALITY_LEVELS)
            values.setdefault("between quantiles", []).append(between)
            values.setdefault("by rank", []).append(conformal(known, asked))
            values.setdefault("smoothed rank", []).append(smoothed(between, count))
        for name, each in values.items():
            found[f"{name}, n={count}"] = {
                str(alpha): float(np.mean(np.array(each) <= alpha)) for alpha in ALPHAS
            }
    return found


def smoothed(between: Floats, count: int) -> Floats:
    """Returns interpolated levels (n,) of ``count`` scores as p-values, at least 1 / (count + 1)."""
    return (1.0 + (count - 1.0) * between) / (count + 1.0)


Curve = dict[str, list[float]]


def risk_coverage(flan: Flan, asked: Outcome, regime: str, shares: Floats) -> dict[str, Curve]:
    """Returns by what queries are kept by {"coverage", "percent"}: the % of Oracle of the kept share."""
    utilities = utilities_of(flan, asked, regime, shares)
    scores = served(flan, asked, regime, shares)
    keys = {
        "typicality": asked.typicality,
        "largest probability": asked.posterior.max(axis=1),
        "largest expected utility": utilities.max(axis=1),
    }
    return {name: _curve(flan, asked, scores, key) for name, key in keys.items()}


def _curve(flan: Flan, asked: Outcome, scores: Floats, key: Floats) -> Curve:
    order = np.argsort(-key, kind="stable")
    kept = [order[: max(1, round(coverage * len(order)))] for coverage in COVERAGES]
    return {
        "coverage": [len(rows) / len(order) for rows in kept],
        "percent": [percent(flan, asked.own[rows], scores[rows]) for rows in kept],
    }
