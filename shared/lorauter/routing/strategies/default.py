"""Strategy ``default``: the posterior over tasks times what was measured, the base among the arms."""

from __future__ import annotations

import numpy as np

from lorauter.routing.fitting import UNFITTED_TASKS
from lorauter.routing.posterior import UNFITTED
from lorauter.routing.representation import unit
from lorauter.routing.strategies.composing import considered, weights_of_set
from lorauter.routing.strategies.strategy import (
    Choice,
    Floats,
    Grounds,
    Mask,
    Question,
    Rows,
    best_measured_arms,
    nearest,
    softmax,
    typicality_of,
    weights_of,
)

DECIDING = 64
"""Most tasks that decide: of thousands all others together are all but improbable."""


class DefaultStrategy:
    """Expected utility: each arm's share of a task's best score, by the probability of the task.

    p(task | query) = softmax(a · dense + b · lexical), see lorauter.routing.posterior. The best single arm is
    that of the largest Σ p(task) · share; what was not measured on a task, or fell out of its best, counts as
    0 there. Tasks without a measurement leave their say to the others. The weighted set: the best arm of each
    of the K most probable tasks, weighted by their probabilities, K fitted; or, where one was measured on
    such a task and is expected to be worth more than the best single arm, a composition.
    """

    name = "default"
    reads_words = True

    def choose(self, question: Question, max_adapters: int) -> Choice:
        """Answers with the constants of the pool's profile."""
        profile = question.pool.profile
        constants = {name: profile.constants.get(name, value) for name, value in UNFITTED.items()}
        count = int(profile.constants.get("default_tasks", UNFITTED_TASKS))
        scores = _scores(question, constants["dense_weight"], constants["lexical_weight"])
        probabilities = _posterior(scores, question.tasks)
        deciding, weights = _deciding(question, scores)
        utilities, known = _utilities(question, deciding, weights)
        single = _best_single(question, utilities, known, deciding)
        chosen = deciding[:count]
        best = best_measured_arms(question, chosen)
        adapters = weights_of(best, weights[:count], len(question.arms))
        if max_adapters == 1 and single >= 0:
            adapters = np.zeros(len(adapters))
            adapters[single] = 1.0
            best = best[:0]
        sets = considered(question, chosen, weights[:count], utilities, single, max_adapters)
        served = next((each for each in sets if each.served), None)
        if served is not None:
            adapters, best = weights_of_set(served.composition, len(adapters)), best[:0]
        return Choice(
            probabilities=probabilities,
            weights=adapters,
            single=single,
            utilities=utilities,
            known=known,
            typicality=typicality_of(profile, float(scores[probabilities.argmax()]), "score"),
            constants={**constants, "tasks": float(count)},
            grounds=Grounds(deciding, weights, best, source=served.place if served else -1),
            considered=sets,
        )


def _scores(question: Question, dense_weight: float, lexical_weight: float) -> Floats:
    """Returns float64 (T,), the logarithm of each task's probability, but for a constant."""
    pool = question.pool
    direction = question.direction - pool.mean
    if pool.whitener is not None:
        direction = direction @ pool.whitener
    scores: Floats = (pool.whitened @ unit(direction)).astype(np.float64)
    scores *= dense_weight
    if lexical_weight > 0:
        scores += lexical_weight * question.query.lexical_scores(pool.lexicon)
    return scores


def _posterior(scores: Floats, tasks: Mask) -> Floats:
    masked = np.where(tasks, scores, -np.inf)
    return softmax(masked, 1.0)


def _deciding(question: Question, scores: Floats) -> tuple[Rows, Floats]:
    """Returns the most probable tasks with a measured arm, best first, and their shares of the say."""
    rows = nearest(scores, question.tasks & question.measured(), DECIDING)
    return rows, softmax(scores[rows], 1.0) if len(rows) else np.zeros(0)


def _utilities(question: Question, deciding: Rows, weights: Floats) -> tuple[Floats, Mask]:
    """Returns (A,) expected shares of the best score, and which arms were measured on a deciding task."""
    columns = question.pool.columns[deciding]
    measured = (columns >= 0) & question.arms[columns]
    given = (weights[:, None] * question.pool.shares[deciding])[measured]
    utilities: Floats = np.bincount(columns[measured], given, minlength=len(question.arms)).astype(np.float64)
    known = np.zeros(len(question.arms), dtype=bool)
    known[columns[measured]] = True
    return utilities, known


def _best_single(question: Question, utilities: Floats, known: Mask, deciding: Rows) -> int:
    """Returns the known arm of the largest utility; ties: the base, then as the likeliest task has them."""
    rows = np.flatnonzero(known)
    if len(rows) == 0:
        return -1
    tied = rows[utilities[rows] >= utilities[rows].max() - 1e-12].tolist()
    if len(tied) == 1 or tied[0] == 0:
        return int(tied[0])
    ordered = (int(arm) for task in deciding for arm in question.pool.columns[task] if arm in tied)
    return next(ordered, int(tied[0]))
