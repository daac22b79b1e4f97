"""Which affinities a snapshot keeps."""

from __future__ import annotations

from collections.abc import Iterable

from lorauter.identifiers import BASE
from lorauter.routing.model import Affinity

KEPT = 64
"""Affinities of a task that a snapshot keeps."""


def kept_affinities(affinities: Iterable[Affinity], is_complete: bool) -> tuple[Affinity, ...]:
    """Returns the best 64, best first, the base always among them; none before the task is complete.

    Of equal scores the order given stays. A task is complete once it has the base, which every matching
    measures, or its affinities were imported: else a router would choose among adapters of which it does
    not know whether any is worth it.
    """
    if not is_complete:
        return ()
    ranked = sorted(affinities, key=lambda affinity: -affinity.score)
    kept = ranked[:KEPT]
    left_out = [affinity for affinity in ranked[KEPT:] if affinity.adapter_id == BASE]
    return tuple(kept[: KEPT - len(left_out)] + left_out)
