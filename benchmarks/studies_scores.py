"""Scores that are measured on few examples, and other models' scores: how expected utility copes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.flan import Flan, Floats
from benchmarks.flan_pools import REGIMES
from benchmarks.studies_runs import Run, paired, percent, served, shares_of

COUNTS = (20, 50, 200)
"""Examples behind each score."""
DRAWS = 40
TRUST = 50.0
"""Bound on how many examples' worth a prior is."""

Rule = Callable[[Floats, int], Floats]
"""From measured scores (T, A) and the number of examples behind each to what is taken for true."""

Figures = dict[str, dict[str, tuple[float, float]]]


def as_measured(scores: Floats, count: int) -> Floats:
    """The mean itself."""
    return scores


def towards_task(scores: Floats, count: int) -> Floats:
    """Empirical Bayes towards the task's mean, weighed by the method of moments, as matching does."""
    return _drawn(scores, np.broadcast_to(scores.mean(axis=1, keepdims=True), scores.shape), count)


def towards_both(scores: Floats, count: int) -> Floats:
    """Empirical Bayes towards the sum of the task's and the adapter's effects."""
    usual = scores.mean(axis=1, keepdims=True) + scores.mean(axis=0, keepdims=True) - scores.mean()
    return _drawn(scores, np.clip(usual, 0.0, 1.0), count)


def towards_adapter(scores: Floats, count: int) -> Floats:
    """Empirical Bayes towards the adapter's mean share of the best, times the task's best."""
    best = scores.max(axis=1, keepdims=True)
    return _drawn(scores, best * shares_of(scores).mean(axis=0, keepdims=True), count)


def less_an_error(scores: Floats, count: int) -> Floats:
    """The mean less its standard error, of which one is added to the examples so that it is never 0."""
    smooth = (scores * count + 0.5) / (count + 1.0)
    return np.maximum(scores - np.sqrt(smooth * (1 - smooth) / count), 0.0)


RULES: Mapping[str, Rule] = {
    "as measured": as_measured,
    "towards the task's mean": towards_task,
    "towards the adapter's mean": towards_adapter,
    "towards both": towards_both,
    "less a standard error": less_an_error,
}


def _drawn(scores: Floats, usual: Floats, count: int) -> Floats:
    """Returns scores drawn to ``usual`` by weight / (count + weight), a weight for each task."""
    within = (scores * (1 - scores)).mean(axis=1, keepdims=True) * count / (count - 1.0)
    between = ((scores - usual) ** 2).mean(axis=1, keepdims=True) - within / count
    weight = np.clip(within / np.maximum(between, 1e-9), 0.0, TRUST)
    drawn: Floats = (count * scores + weight * usual) / (count + weight)
    return drawn


def few_examples(flan: Flan, run: Run, side: str, seed: int) -> dict[str, Figures]:
    """Returns by count and rule the % of Oracle (as (value, 0)) of the first rule, the others' differences.

    The published scores are the truth: they judge, and binomial draws from them are what is measured.
    """
    random = np.random.default_rng(seed)
    found: dict[str, Figures] = {}
    for count in COUNTS:
        draws = random.binomial(count, flan.affinity, (DRAWS, *flan.affinity.shape)) / count
        found[str(count)] = {}
        for regime in REGIMES:
            asked = run[side, regime]
            plain = np.zeros(len(asked.own))
            for name, rule in RULES.items():
                each = [served(flan, asked, regime, shares_of(rule(draw, count))) for draw in draws]
                scores = np.mean(each, axis=0)
                if rule is as_measured:
                    plain = scores
                    value = percent(flan, asked.own, scores), 0.0
                else:
                    value = paired(flan, asked.own, scores, plain)
                found[str(count)].setdefault(name, {})[regime] = value
    return found


def remeasured(affinity: Floats, random: np.random.Generator) -> Floats:
    """Another model's scores that rank alike: each task's log-odds stretched and moved, then drawn anew."""
    odds = np.log((affinity + 0.005) / (1.005 - affinity))
    stretch = random.uniform(0.5, 1.5, (len(affinity), 1))
    moved = odds * stretch + random.normal(0.0, 0.5, (len(affinity), 1))
    return np.asarray(random.binomial(200, 1 / (1 + np.exp(-moved))) / 200, dtype=np.float64)


def reranked(correlation: float) -> Callable[[Floats, np.random.Generator], Floats]:
    """Another model's scores: a task keeps its values, but which adapter has which is as like as this."""

    def made(affinity: Floats, random: np.random.Generator) -> Floats:
        spread = affinity - affinity.mean(axis=1, keepdims=True)
        spread = spread / np.maximum(spread.std(axis=1, keepdims=True), 1e-9)
        noise = random.normal(size=affinity.shape) * np.sqrt(1 - correlation**2)
        order = np.argsort(np.argsort(correlation * spread + noise, axis=1), axis=1)
        return np.take_along_axis(np.sort(affinity, axis=1), order, axis=1)

    return made


MODELS: Mapping[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "ranks alike, measured anew": remeasured,
    "correlation 0.8": reranked(0.8),
    "correlation 0.6": reranked(0.6),
}
