"""The metrics by name; a change of what one computes raises its version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorauter.errors import InvalidArgument
from lorauter.metrics.exact_match import exact_match


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: ``score(prediction, target)`` is in 0..1, and 1 is best.

    Where ``needs_generation`` is False, a greedy answer scores 1 exactly if every teacher-forced argmax
    is the target's token and the end follows it, so that one forward pass decides.
    """

    name: str
    version: int
    needs_generation: bool
    score: Callable[[str, str], float]


_METRICS = {
    metric.name: metric
    for metric in [Metric(name="exact_match", version=1, needs_generation=False, score=exact_match)]
}

METRIC_NAMES = tuple(sorted(_METRICS))
"""The names that a task's metric may have."""


def metric(name: str) -> Metric:
    """Returns a metric; raises InvalidArgument (UNKNOWN_METRIC) with the known names."""
    found = _METRICS.get(name)
    if found is None:
        raise InvalidArgument(
            "UNKNOWN_METRIC",
            f"metric {name[:80]!r} is not known: use one of {', '.join(METRIC_NAMES)}",
            field="metric",
        )
    return found
