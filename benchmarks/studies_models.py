"""Stand-ins for other queries and another model: does the gain over the paper's router stay?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.flan import Flan, Floats
from benchmarks.flan_pools import REGIMES, Embedded, by_task
from benchmarks.studies_channels import PAPER
from benchmarks.studies_lab import DEFAULT, Mask, Texts, with_vectors
from benchmarks.studies_runs import QUERIES, Outcome, Run, paired, run, served, shares_of
from benchmarks.studies_scores import MODELS
from lorauter.encoder import Encoder

DRAWS = 40

Gains = dict[str, tuple[float, float]]
"""By regime: `default` less the paper's router, in % of Oracle, and the standard error over tasks."""


def encoded(flan: Flan, encoder: Encoder) -> Embedded:
    """Returns the vectors of all inputs."""
    groups = [*flan.validation.values(), *flan.queries.values()]
    return by_task(flan, encoder.encode([text for group in groups for text in group]))


def paper_vectors(flan: Flan, directory: Path) -> Embedded:
    """Returns the vectors of the paper's encoder, which come with the data."""
    validation, queries = (
        np.load(directory / f"paper_encoder_{part}.npy").astype(np.float32)
        for part in ("validation", "queries")
    )
    return by_task(flan, np.concatenate([validation, queries[flan.kept_queries]]))


def stand_ins(
    flan: Flan, ours: Run, sides: tuple[Texts, Texts], theirs: Embedded, seed: int
) -> dict[str, Gains]:
    """Returns the gain over the paper's router on its own encoder, by what stands in for other data.

    ``ours`` is `default` on the ``sides``, validation and queries.
    """
    validation, queries = with_vectors(flan, theirs, *sides)
    paper = run(flan, PAPER, validation, queries)
    shares = shares_of(flan.affinity)
    number = np.arange(len(queries)) - np.searchsorted(queries.owners, queries.owners)
    swapped = run(flan, DEFAULT, sides[1], sides[0]), run(flan, PAPER, queries, validation)
    found = {
        "as it is": _gains(flan, ours, paper, shares),
        "every second query": _gains(
            flan, _part(ours, number % 2 == 0), _part(paper, number % 2 == 0), shares
        ),
        "the other queries": _gains(
            flan, _part(ours, number % 2 == 1), _part(paper, number % 2 == 1), shares
        ),
        "roles swapped": _gains(flan, *swapped, shares),
    }
    for name, made in MODELS.items():
        random = np.random.default_rng(seed)
        matrices = [made(flan.affinity, random) for _ in range(DRAWS)]
        found[name] = {regime: _drawn(flan, ours, paper, regime, matrices) for regime in REGIMES}
    return found


def _part(of: Run, mask: Mask) -> Run:
    """Returns the queries under ``mask``."""
    return {
        key: Outcome(each.own[mask], each.posterior[mask], each.typicality[mask], each.deciding)
        for key, each in of.items()
        if key[0] == QUERIES
    }


def _gains(flan: Flan, ours: Run, theirs: Run, shares: Floats) -> Gains:
    found = {}
    for regime in REGIMES:
        one, two = ours[QUERIES, regime], theirs[QUERIES, regime]
        scores = [served(flan, each, regime, shares) for each in (one, two)]
        found[regime] = paired(flan, one.own, scores[0], scores[1])
    return found


def _drawn(
    flan: Flan, ours: Run, theirs: Run, regime: str, matrices: Sequence[Floats]
) -> tuple[float, float]:
    """Returns the mean gain over other score matrices, each of which both chooses and judges."""
    gained = []
    for scores in matrices:
        shares = shares_of(scores)
        one, two = (served(flan, each[QUERIES, regime], regime, shares, scores) for each in (ours, theirs))
        gained.append(one - two)
    own = ours[QUERIES, regime].own
    return paired(flan, own, np.mean(gained, axis=0), np.zeros(len(own)))


def correlations(flan: Flan, seed: int) -> Mapping[str, float]:
    """Returns how each stand-in for another model correlates with the published scores, by task."""
    found = {}
    for name, made in MODELS.items():
        other = made(flan.affinity, np.random.default_rng(seed))
        pairs = [
            (ours, theirs) for ours, theirs in zip(flan.affinity, other, strict=True) if theirs.std() > 0
        ]
        found[name] = float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))
    return found
