"""From right and wrong answers to figures: % of a reference, errors over seeds, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.lab_methods import METHODS, Answers
from benchmarks.lab_pools import REGIMES, Floats

PAIRED: Mapping[str, Sequence[str]] = {
    "default": ("paper", "paper_tuned", "constant", "uniform_top3", "peft_linear", "default_single"),
    "default_single": ("paper", "paper_tuned", "constant", "uniform_top3", "peft_linear"),
}
"""What is compared in pairs: a method, and those whose figures are taken off it."""

Summary = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By regime, by method, by figure."""


def percent_of(right: Floats, reference: Floats, clusters: Sequence[str]) -> float:
    """Returns the mean over clusters of right answers / the reference's right answers, in %.

    ``right`` and ``reference``: (T, q), 1 where right; ``clusters`` (T,). A reference is right at least once
    in each cluster.
    """
    names = np.array(clusters)
    shares = [
        right[names == name].mean() / reference[names == name].mean() for name in dict.fromkeys(clusters)
    ]
    return 100 * float(np.mean(shares))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of at least two seeds' values and its standard error, rounded to 0.01."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return round(float(np.mean(values)), 2), round(float(error), 2)


def regimes(seeds: Sequence[Answers], clusters: Sequence[str]) -> Summary:
    """Returns `percent_of_best_single` and `percent_of_own`, their errors over seeds, and `right` in %."""

    def figures(regime: str, method: str) -> dict[str, float]:
        best, error = mean_and_error(_percents(seeds, regime, method, clusters))
        own, own_error = mean_and_error(_percents(seeds, regime, method, clusters, "own_adapter"))
        right = 100 * float(np.mean([each[regime][method].mean() for each in seeds]))
        return {
            "percent_of_best_single": best,
            "percent_of_own": own,
            "standard_error": error,
            "own_standard_error": own_error,
            "right": round(right, 2),
        }

    return {regime: {method: figures(regime, method) for method in METHODS} for regime in REGIMES}


def paired(seeds: Sequence[Answers], clusters: Sequence[str], ours: str) -> Summary:
    """Returns ``ours`` less others by regime: `difference` of % of best single, with `standard_error`.

    Seeds are pairs: both methods answer the same queries with the same adapters.
    """

    def figures(regime: str, method: str) -> dict[str, float]:
        mine, theirs = (_percents(seeds, regime, name, clusters) for name in (ours, method))
        difference, error = mean_and_error(np.subtract(mine, theirs).tolist())
        return {"difference": difference, "standard_error": error}

    return {regime: {method: figures(regime, method) for method in PAIRED[ours]} for regime in REGIMES}


def by_seed(seeds: Sequence[Answers], clusters: Sequence[str]) -> Mapping[str, Mapping[str, list[float]]]:
    """Returns % of best single by regime and method, one for each seed in order."""
    return {
        regime: {
            method: [round(value, 2) for value in _percents(seeds, regime, method, clusters)]
            for method in METHODS
        }
        for regime in REGIMES
    }


def by_cluster(seeds: Sequence[Answers], clusters: Sequence[str]) -> Summary:
    """Returns right answers in % by regime, method and cluster, over all seeds."""
    names = np.array(clusters)

    def right(regime: str, method: str, cluster: str) -> float:
        return round(100 * float(np.mean([each[regime][method][names == cluster] for each in seeds])), 1)

    return {
        regime: {
            method: {cluster: right(regime, method, cluster) for cluster in dict.fromkeys(clusters)}
            for method in METHODS
        }
        for regime in REGIMES
    }


def _percents(
    seeds: Sequence[Answers],
    regime: str,
    method: str,
    clusters: Sequence[str],
    reference: str = "best_single",
) -> list[float]:
    return [percent_of(each[regime][method], each[regime][reference], clusters) for each in seeds]
