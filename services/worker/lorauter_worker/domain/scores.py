"""Scores of examples to an affinity, and affinities to what a snapshot keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lorauter.identifiers import BASE
from lorauter.routing.model import Affinity

KEPT = 64
"""Affinities of a task that a snapshot keeps."""


def mean_and_error(scores: Sequence[float]) -> tuple[float, float]:
    """Returns mean and standard error of at least one score in 0..1.

    The error is the sample standard deviation over √n; of 0/1 scores that is √(p(1−p)/(n−1)). One
    score alone has the largest error that a mean in 0..1 can have, 0.5.
    """
    count = len(scores)
    mean = math.fsum(scores) / count
    if count == 1:
        return mean, 0.5
    variance = math.fsum((score - mean) ** 2 for score in scores) / (count - 1)
    return mean, math.sqrt(variance / count)


def kept_affinities(affinities: Iterable[Affinity], is_complete: bool) -> tuple[Affinity, ...]:
    """Returns the best 64, best first, the base always among them; none before the task is complete.

    Equal scores go to the surer, then by id. A task is complete once its base is measured, which matching
    does last, or its affinities were imported: until then a router would choose among the few adapters
    that happened to come first.
    """
    if not is_complete:
        return ()
    ranked = sorted(affinities, key=lambda a: (-a.score, a.standard_error, a.adapter_id, a.adapter_version))
    kept = ranked[:KEPT]
    left_out = [affinity for affinity in ranked[KEPT:] if affinity.adapter_id == BASE]
    return tuple(kept[: KEPT - len(left_out)] + left_out)
