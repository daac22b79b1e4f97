"""Strategy ``paper``: LORAUTER as published (arXiv:2601.21795)."""

from __future__ import annotations

import numpy as np

from lorauter.routing.strategies.strategy import (
    Choice,
    Grounds,
    Question,
    best_arms,
    cosines,
    filled_shares_of,
    nearest,
    softmax,
    typicality_of,
    weights_of,
)

TASKS = 3
TEMPERATURE = 0.2


class PaperStrategy:
    """Cosine to centroids, the nearest 3 tasks, softmax over those 3 at τ = 0.2.

    Each task contributes its best adapter by affinity, and the weights of tasks that share an adapter are
    added. The base is no arm, there is no threshold, and probabilities outside the 3 tasks are 0. The best
    single adapter is that of the nearest task: the same rule with K = 1. Not in the paper: a task without
    affinities contributes the best adapter of its nearest measured tasks.
    """

    name = "paper"
    reads_words = False

    def choose(self, question: Question, max_adapters: int) -> Choice:
        """Answers by the published rule."""
        adapters = question.arms.copy()
        adapters[0] = False
        similarities = cosines(question.pool, question.direction)
        rows = nearest(similarities, question.tasks, TASKS)
        weights = softmax(similarities[rows], TEMPERATURE)
        shares, known = filled_shares_of(question, rows, adapters, TEMPERATURE)
        best = best_arms(question, rows, shares, known)
        probabilities = np.zeros(len(question.tasks))
        probabilities[rows] = weights
        return Choice(
            probabilities=probabilities,
            weights=weights_of(best, weights, len(adapters)),
            single=int(next((arm for arm in best if arm >= 0), -1)),
            utilities=weights @ shares,
            known=np.any(known, axis=0),
            typicality=typicality_of(question.pool.profile, float(similarities[rows[0]])),
            constants={"tasks": float(TASKS), "temperature": TEMPERATURE},
            grounds=Grounds(rows, weights, best, shares),
        )
