"""Runs designs through the four regimes, on validation inputs and on queries, and compares them in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.flan import Flan, Floats
from benchmarks.flan_pools import REGIMES
from benchmarks.studies_lab import FOLDS, Design, Fitted, Mask, Rows, Texts, fit, softmax

VALIDATION, QUERIES = "validation", "queries"
LEAST = 1e-9
"""A probability of the own task that is lower counts as this."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a posterior said of n texts: ``own`` (n,) tasks, ``posterior`` (n, T), ``typicality`` (n,).

    Only the likeliest ``deciding`` tasks have a say in what is served, if it is not 0.
    """

    own: Rows
    posterior: Floats
    typicality: Floats
    deciding: int = 0

    @property
    def right(self) -> Floats:
        """(n,): 1 where the own task is the likeliest."""
        right: Floats = (self.posterior.argmax(axis=1) == self.own).astype(np.float64)
        return right

    @property
    def log_loss(self) -> Floats:
        """(n,): that of the own task."""
        losses: Floats = -np.log(np.maximum(self.posterior[np.arange(len(self.own)), self.own], LEAST))
        return losses


Run = Mapping[tuple[str, str], Outcome]
"""By side (validation, queries) and regime."""


def run(flan: Flan, design: Design, validation: Texts, queries: Texts) -> Run:
    """Routes both sides by a design that is fitted without what each regime bars.

    Validation texts that a regime does not bar are routed in five folds, each fitted without itself. Where
    only the own task is barred, the weights are those fitted without its cluster.
    """
    whole = fit(design, validation)
    folds = _within(validation)
    parts = [(fit(design, validation.only(folds != fold)), folds == fold) for fold in range(FOLDS)]
    sides = {VALIDATION: validation, QUERIES: queries}
    found: dict[tuple[str, str], Outcome] = {}
    for regime in ("non_ood", "semi_ood"):
        found[VALIDATION, regime] = _joined(flan, validation, parts)
        found[QUERIES, regime] = outcome(flan, whole, queries)
    clusters = np.unique(np.array(flan.clusters), return_inverse=True)[1]
    apart: dict[tuple[str, str], list[tuple[Fitted, Mask]]] = {}
    for cluster in np.unique(clusters):
        rest = fit(design, validation.only(clusters[validation.owners] != cluster))
        for side, texts in sides.items():
            apart.setdefault((side, "unseen_cluster"), []).append((rest, clusters[texts.owners] == cluster))
        for task in np.flatnonzero(clusters == cluster):
            mates = validation.only(validation.owners != task)
            less = replace(rest, tasks=np.unique(mates.owners), known=mates)
            for side, texts in sides.items():
                apart.setdefault((side, "ood"), []).append((less, texts.owners == task))
    for (side, regime), cut in apart.items():
        found[side, regime] = _joined(flan, sides[side], cut)
    return found


def outcome(flan: Flan, fitted: Fitted, asked: Texts) -> Outcome:
    """Returns what a fitted design says of texts; barred tasks have probability 0."""
    scores = fitted.scores(asked)
    posterior = np.zeros((len(asked), len(flan.tasks)))
    posterior[:, fitted.tasks] = likeliest(softmax(scores), fitted.design.listed)
    return Outcome(asked.owners, posterior, fitted.typicality(scores), fitted.design.deciding)


def likeliest(posterior: Floats, count: int) -> Floats:
    """Returns the ``count`` largest probabilities of each row, scaled to sum to 1, or all if it is 0."""
    if not 0 < count < posterior.shape[1]:
        return posterior
    order = np.argsort(-posterior, axis=1, kind="stable")[:, :count]
    kept = np.zeros_like(posterior)
    np.put_along_axis(kept, order, np.take_along_axis(posterior, order, axis=1), axis=1)
    scaled: Floats = kept / kept.sum(axis=1, keepdims=True)
    return scaled


def _joined(flan: Flan, asked: Texts, parts: Sequence[tuple[Fitted, Mask]]) -> Outcome:
    posterior, typicality = np.zeros((len(asked), len(flan.tasks))), np.zeros(len(asked))
    for fitted, mask in parts:
        part = outcome(flan, fitted, asked.only(mask))
        posterior[mask], typicality[mask] = part.posterior, part.typicality
    return Outcome(asked.owners, posterior, typicality, parts[0][0].design.deciding)


def _within(texts: Texts) -> Rows:
    """Returns (n,), the fold of each text: its place in its task, modulo FOLDS."""
    first = np.searchsorted(texts.owners, texts.owners)
    folds: Rows = (np.arange(len(texts)) - first) % FOLDS
    return folds


def shares_of(scores: Floats) -> Floats:
    """Returns (T, A) scores as shares of each task's best."""
    best = scores.max(axis=1, keepdims=True)
    shares: Floats = np.divide(scores, best, out=np.zeros_like(scores), where=best > 0)
    return shares


def barred_adapters(flan: Flan, own: Rows, regime: str) -> Mask:
    """Returns (n, A): which adapters a regime bars for queries of tasks ``own`` (n,)."""
    clusters = np.array(flan.clusters)
    none = np.zeros((len(clusters), len(clusters)), dtype=bool)
    by_task = {"non_ood": none, "unseen_cluster": clusters[:, None] == clusters[None, :]}
    found: Mask = by_task.get(regime, np.eye(len(clusters), dtype=bool))[own]
    return found


def served(flan: Flan, asked: Outcome, regime: str, shares: Floats, judge: Floats | None = None) -> Floats:
    """Returns (n,), the scores of the adapters of the largest expected ``shares`` (T, A).

    Judged by the affinities (T, A), or by ``judge``.
    """
    utilities = utilities_of(flan, asked, regime, shares)
    found: Floats = (flan.affinity if judge is None else judge)[asked.own, utilities.argmax(axis=1)]
    return found


def utilities_of(flan: Flan, asked: Outcome, regime: str, shares: Floats) -> Floats:
    """Returns (n, A) expected shares, -1 where an adapter is barred; equal ones go to the aligned adapter."""
    nudged = shares + 1e-9 * np.eye(len(shares))
    utilities: Floats = likeliest(asked.posterior, asked.deciding) @ nudged
    utilities[barred_adapters(flan, asked.own, regime)] = -1.0
    return utilities


def percent(flan: Flan, own: Rows, scores: Floats) -> float:
    """Returns the mean over clusters of cluster mean / aligned adapters' cluster mean, in %."""
    return float(_parts(flan, own, scores).sum())


def paired(flan: Flan, own: Rows, ours: Floats, theirs: Floats) -> tuple[float, float]:
    """Returns the difference in % of Oracle and its standard error over tasks."""
    return error_of_sum(_parts(flan, own, ours - theirs))


def paired_means(own: Rows, ours: Floats, theirs: Floats) -> tuple[float, float]:
    """Returns the mean over tasks of a difference, and its standard error over tasks."""
    tasks, numbers = np.unique(own, return_inverse=True)
    means = np.bincount(numbers, ours - theirs) / np.bincount(numbers)
    return error_of_sum(means / len(tasks))


def error_of_sum(parts: Floats) -> tuple[float, float]:
    """Returns the sum of the tasks' parts, and its standard error if the tasks were drawn."""
    if len(parts) < 2:
        return float(parts.sum()), 0.0
    return float(parts.sum()), float(np.sqrt(len(parts)) * parts.std(ddof=1))


def _parts(flan: Flan, own: Rows, scores: Floats) -> Floats:
    """Returns by task what it adds to the % of Oracle, or to a difference of two."""
    names, clusters = np.unique(np.array(flan.clusters), return_inverse=True)
    aligned = np.bincount(clusters[own], np.diag(flan.affinity)[own], minlength=len(names))
    asked = aligned > 0
    sums = np.bincount(own, scores, minlength=len(clusters))
    parts: Floats = 100 * sums / np.where(asked, aligned, 1.0)[clusters] / max(int(asked.sum()), 1)
    return parts[np.unique(own)]


def table(flan: Flan, of: Run, shares: Floats, side: str) -> dict[str, float]:
    """Returns top1 (%), log_loss, and % of Oracle by regime."""
    plain = of[side, "non_ood"]
    found = {"top1": 100 * float(plain.right.mean()), "log_loss": float(plain.log_loss.mean())}
    for regime in REGIMES:
        each = of[side, regime]
        found[regime] = percent(flan, each.own, served(flan, each, regime, shares))
    return found


def compared(flan: Flan, ours: Run, theirs: Run, shares: Floats, side: str) -> dict[str, tuple[float, float]]:
    """Returns the differences of two runs, with standard errors, by the names of table()."""
    mine, other = ours[side, "non_ood"], theirs[side, "non_ood"]
    top1 = paired_means(mine.own, 100 * mine.right, 100 * other.right)
    found = {"top1": top1, "log_loss": paired_means(mine.own, mine.log_loss, other.log_loss)}
    for regime in REGIMES:
        one, two = ours[side, regime], theirs[side, regime]
        scores = [served(flan, each, regime, shares) for each in (one, two)]
        found[regime] = paired(flan, one.own, scores[0], scores[1])
    return found
