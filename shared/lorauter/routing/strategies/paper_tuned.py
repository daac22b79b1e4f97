"""Strategy ``paper_tuned``: the paper's rule with K and τ fitted, and the base as an arm."""

from __future__ import annotations

import numpy as np

from lorauter.routing.fitting import UNFITTED_TASKS, UNFITTED_TEMPERATURE
from lorauter.routing.strategies.strategy import (
    Choice,
    Floats,
    Grounds,
    Mask,
    Question,
    best_arms,
    cosines,
    filled_shares_of,
    nearest,
    softmax,
    typicality_of,
    weights_of,
)


class PaperTunedStrategy:
    """Softmax over the cosines to centroids at the fitted τ; the K most probable tasks decide.

    Each of them contributes its best arm, the base included. The best single arm maximises the expected
    share of the best score over those K tasks: Σ p(task) · score / best score.
    """

    name = "paper_tuned"
    reads_words = False

    def choose(self, question: Question, max_adapters: int) -> Choice:
        """Answers with the constants of the pool's profile."""
        constants = question.pool.profile.constants
        temperature = constants.get("temperature", UNFITTED_TEMPERATURE)
        count = int(constants.get("tasks", UNFITTED_TASKS))
        taking_part = np.flatnonzero(question.tasks)
        probabilities = np.zeros(len(question.tasks))
        similarities = cosines(question.pool, question.direction)
        probabilities[taking_part] = softmax(similarities[taking_part], temperature)
        rows = nearest(similarities, question.tasks, count)
        kept = probabilities[rows] / probabilities[rows].sum()
        shares, known = filled_shares_of(question, rows, question.arms, temperature)
        best = best_arms(question, rows, shares, known)
        weights = weights_of(best, kept, len(question.arms))
        utilities = kept @ shares
        single = _best_single(utilities, weights, np.any(known, axis=0))
        if max_adapters == 1 and single >= 0:
            weights = np.zeros(len(weights))
            weights[single] = 1.0
            best = best[:0]
        return Choice(
            probabilities=probabilities,
            weights=weights,
            single=single,
            utilities=utilities,
            known=np.any(known, axis=0),
            typicality=typicality_of(question.pool.profile, float(similarities[rows[0]])),
            constants={"tasks": float(count), "temperature": temperature},
            grounds=Grounds(rows, kept, best, shares),
        )


def _best_single(utilities: Floats, weights: Floats, known: Mask) -> int:
    """Returns the known arm of the largest utility; ties go to the base, larger weight, smaller row."""
    rows = np.flatnonzero(known)
    if len(rows) == 0:
        return -1
    order = np.lexsort((rows, -weights[rows], rows != 0, -utilities[rows]))
    return int(rows[order[0]])
