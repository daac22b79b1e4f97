"""Fits a routing profile over validation sets, every example scored with itself left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lorauter.routing.examples import Gathered, Memory, TaskExamples
from lorauter.routing.left_out import LeftOut, evenly_spaced
from lorauter.routing.model import Profile
from lorauter.routing.posterior import DECIMALS, Fit, fit_posterior, stays
from lorauter.routing.representation import unit_rows

__all__ = [
    "Memory",
    "Refit",
    "TaskExamples",
    "add_quantiles",
    "fit_profile",
    "known_name",
    "make_profile",
    "refit",
    "typicality_name",
]

UNFITTED_TASKS = 3
UNFITTED_TEMPERATURE = 0.05
"""K and τ where nothing can be scored: the paper's K, and about the τ that small encoders fit."""

TEMPERATURES: tuple[float, ...] = tuple(np.geomspace(0.5, 0.005, 41).round(DECIMALS).tolist())
"""What τ is chosen from, from wary to sure; ties go to the wary side."""

COVERAGE = 0.99
"""K is the smallest number of tasks that holds the true one for this share of examples."""

UNTYPICAL_BELOW = 0.02
"""Queries less typical than this meet the pool's policy: 2 % of known queries do."""

TYPICALITY_LEVELS = (0.0, 0.005, 0.01, 0.02, 0.05, *(step / 10 for step in range(1, 10)), 0.95, 0.99, 1.0)
"""Quantiles kept of the leave-one-out best similarities; finest where the policy decides."""

MAX_SCORES = 1 << 20
"""Most (example, task) scores that a fit looks at: beyond it, evenly spaced examples stand for all."""

_CHUNK = 1 << 20

Scores = NDArray[np.float32]
Losses = NDArray[np.float64]
Owners = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Refit:
    """A pool's profile, and how its constants came about, by name.

    ``report``: ``kept`` is 1 where ``default`` goes on with the constants from before, 0 where it got new
    ones; ``log_loss_before`` and ``log_loss_fitted`` are theirs, on the same examples. Empty where there was
    nothing to choose between.
    """

    profile: Profile
    report: Mapping[str, float]


def typicality_name(level: float, of: str = "similarity") -> str:
    """Returns the constant that holds a quantile of the best similarities, or scores, of known queries."""
    return f"best_{of}_q{level:.3f}"


def known_name(of: str = "similarity") -> str:
    """Returns the constant that holds how many known queries these quantiles are of."""
    return f"best_{of}_count"


def fit_profile(tasks: Sequence[TaskExamples], max_tasks: int = UNFITTED_TASKS) -> Profile:
    """Returns the profile of a pool that had none before: refit() says what is in it, and what is raised."""
    return refit(tasks, max_tasks=max_tasks).profile


def refit(
    tasks: Sequence[TaskExamples],
    before: Profile | None = None,
    memory: Memory | None = None,
    max_tasks: int = UNFITTED_TASKS,
) -> Refit:
    """Returns a pool's profile: what the strategies ``default`` and ``paper_tuned`` go by.

    For ``default``: ``shrinkage``, ``dense_weight``, ``lexical_weight`` and the scatter, see
    lorauter.routing.posterior. For ``paper_tuned``, the paper's rule with K and τ fitted: each example is
    scored against all centroids, its own task's taken without it; ``temperature`` (τ) minimises the log-loss
    of softmax(similarity / τ) over all tasks. Neither needs affinities.
    These constants stay as ``before`` has them unless the newly fitted ones are better, see
    lorauter.routing.posterior.stays; refitting on what was chosen chooses it again. All others follow the
    examples: ``default_tasks`` and ``tasks`` (K, 1 to ``max_tasks``), the smallest K whose best tasks hold
    the true one for 99 % of the examples, or ``max_tasks``; quantiles of the best score and similarity, for
    typicality. An example without a companion in its task scores nothing; with nothing to tell apart,
    constants are UNFITTED ones.
    Figures: loo_top1, loo_top3, log_loss of ``default``, the same with ``paper_tuned_`` before them, tasks,
    examples (those scored for it). The order of tasks does not matter, nor what ``memory`` holds of them.
    Raises InvalidArgument: INVALID_VECTORS, DUPLICATE_TASK.
    """
    gathered = (memory or Memory()).gather(tasks)
    old: Mapping[str, float] = before.constants if before is not None else {}
    constants = {
        "tasks": float(min(UNFITTED_TASKS, max_tasks)),
        "temperature": UNFITTED_TEMPERATURE,
        "untypical_below": UNTYPICAL_BELOW,
        "default_tasks": float(min(UNFITTED_TASKS, max_tasks)),
    }
    figures = {"tasks": float(len(gathered.tasks)), "examples": 0.0}
    _fit_paper_tuned(gathered, old, max_tasks, constants, figures)
    left = LeftOut(gathered)
    fit = fit_posterior(left, old)
    _add_default(fit, len(gathered.tasks), max_tasks, constants, figures)
    report = {}
    if fit.before is not None:
        report = {
            "kept": float(fit.chosen is fit.before),
            "log_loss_before": fit.before.loss,
            "log_loss_fitted": fit.fitted.loss,
        }
    profile = replace(make_profile(constants, figures), scatter=left.scatter)
    return Refit(profile, {name: round(value, DECIMALS) for name, value in report.items()})


def _fit_paper_tuned(
    gathered: Gathered,
    old: Mapping[str, float],
    max_tasks: int,
    constants: dict[str, float],
    figures: dict[str, float],
) -> None:
    """Fills in what ``paper_tuned`` goes by, and how it does."""
    scores, owners = _leave_one_out(gathered)
    if not len(owners):
        return
    figures["examples"] = float(len(owners))
    add_quantiles(constants, scores.max(axis=1), "similarity")
    if len(gathered.tasks) > 1:
        ranks = _ranks(scores, owners)
        constants["temperature"], losses = _fit_temperature(scores, owners, old.get("temperature"))
        constants["tasks"] = _covering(ranks, max_tasks)
        figures |= {
            "paper_tuned_loo_top1": float(np.mean(ranks < 1)),
            "paper_tuned_loo_top3": float(np.mean(ranks < 3)),
            "paper_tuned_log_loss": float(losses.mean()),
        }


def _add_default(
    fit: Fit, tasks: int, max_tasks: int, constants: dict[str, float], figures: dict[str, float]
) -> None:
    """Fills in what ``default`` goes by, and how it does."""
    chosen = fit.chosen
    constants |= chosen.constants
    if not len(chosen.best):
        return
    add_quantiles(constants, chosen.best, "score")
    if tasks > 1:
        constants["default_tasks"] = _covering(chosen.ranks, max_tasks)
        figures |= {
            "loo_top1": float(np.mean(chosen.ranks < 1)),
            "loo_top3": float(np.mean(chosen.ranks < 3)),
            "log_loss": chosen.loss,
        }


def add_quantiles(constants: dict[str, float], best: Scores | Losses, of: str) -> None:
    """Adds what typicality goes by: how many known queries there are, and quantiles of their best scores."""
    constants[known_name(of)] = float(len(best))
    for level, value in zip(TYPICALITY_LEVELS, np.quantile(best, TYPICALITY_LEVELS), strict=True):
        constants[typicality_name(level, of)] = float(value)


def _covering(ranks: NDArray[np.intp], max_tasks: int) -> float:
    """Returns the smallest number of tasks that holds the true one for COVERAGE of the examples."""
    covered = [float(np.mean(ranks < k)) for k in range(1, max_tasks + 1)]
    return float(next((k for k, share in enumerate(covered, 1) if share >= COVERAGE), max_tasks))


def make_profile(constants: Mapping[str, float], figures: Mapping[str, float]) -> Profile:
    """Returns a profile whose digest is that of its constants, rounded to six decimals, alone."""
    rounded = {name: round(float(constants[name]), DECIMALS) for name in sorted(constants)}
    body = json.dumps({"kind": "lorauter.profile.v1", "constants": rounded}, sort_keys=True)
    digest = f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"
    return Profile(
        digest=digest,
        constants=rounded,
        figures={name: round(float(figures[name]), DECIMALS) for name in sorted(figures)},
    )


def _leave_one_out(gathered: Gathered) -> tuple[Scores, Owners]:
    """Returns similarities (examples, tasks), own task without the example, and each example's task."""
    if not gathered.tasks:
        return np.zeros((0, 0), np.float32), np.zeros(0, np.intp)
    owners, places = evenly_spaced(gathered.counts, max(1, MAX_SCORES // len(gathered.tasks)))
    vectors = gathered.rows(owners, places)
    sums = gathered.sums.astype(np.float32)
    scores = vectors @ unit_rows(sums).T
    without = unit_rows(sums[owners] - vectors)
    scores[np.arange(len(owners)), owners] = np.einsum("ij,ij->i", vectors, without)
    return scores, owners


def _ranks(scores: Scores, owners: Owners) -> NDArray[np.intp]:
    """Returns how many tasks come before each example's own; equal scores go by the tasks' order."""
    own = scores[np.arange(len(owners)), owners][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < owners[:, None]
    before: NDArray[np.intp] = np.count_nonzero((scores > own) | ((scores == own) & earlier), axis=1)
    return before


def _fit_temperature(scores: Scores, owners: Owners, old: float | None) -> tuple[float, Losses]:
    """Returns τ of the grid with the least log-loss, which is convex in 1 / τ, or the old τ if that stays.

    Beside it are the losses (m,) of the examples.
    """
    own = scores[np.arange(len(owners)), owners].astype(np.float64)
    top = scores.max(axis=1)

    @cache
    def losses(temperature: float) -> Losses:
        return _log_losses(scores, own, top, temperature)

    index = _first_minimum(lambda place: float(losses(TEMPERATURES[place]).mean()), len(TEMPERATURES))
    fitted = TEMPERATURES[index]
    chosen = old if old is not None and stays(losses(old), losses(fitted)) else fitted
    return chosen, losses(chosen)


def _first_minimum(value: Callable[[int], float], size: int) -> int:
    """Returns the first index of the least value of a sequence that falls and then rises."""
    low, high = 0, size - 1
    while low < high:
        middle = (low + high) // 2
        if value(middle) <= value(middle + 1):
            high = middle
        else:
            low = middle + 1
    return low


def _log_losses(scores: Scores, own: Losses, top: Scores, temperature: float) -> Losses:
    rows = max(1, _CHUNK // scores.shape[1])
    losses = np.empty(len(scores))
    for start in range(0, len(scores), rows):
        part = slice(start, start + rows)
        shifted = (scores[part] - top[part, None]) / np.float32(temperature)
        mass = np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64)
        losses[part] = np.log(mass) - (own[part] - top[part]) / temperature
    return losses
