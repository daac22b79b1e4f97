"""Tells from how a server reads one fixed text whether an adapter is really there, and is the right one.

A reading is the log-probability (nats) that a server gives each token of a text; None where it tells none. An
adapter's effect is what it changes of the base's reading. Pure; only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Reading = Sequence[float | None]

CANARY_TEXT = (
    "Read this short text with care: on 14 May 2027, 3 of 8 people in the old town had paid $25.60 "
    '(about 12%) for "green tea" and bread. def add(a, b): return a + b  # why not? Please sort, count or '
    'translate these words, then answer: yes or no; {"name": "river", "size": [1, 20, 300]}'
)
"""Words, digits, code and punctuation: whatever an adapter was trained for, it moves some of these tokens."""

SAME = 1e-3
"""Mean difference of tokens' log-probabilities (nats) up to which two readings are the same."""

BATCH_NOISE = 3.0
"""An effect must be so many times the difference between two readings by the base alone: in half precision a
server reads one text a little differently in every batch."""

TOLERANCE = 0.25
"""Share of a reference's effect by which a server's may differ, besides what their precisions explain. The
effects of two adapters that were trained for almost the same differ by 0.33."""

PRECISION_NOISE = 2.0
"""Effects may differ by so many times what the two servers' readings by the base differ by."""

MOST_TOLERANCE = 0.6
"""Share of a reference's effect from which on a tolerance would let another adapter, or none, pass."""


def effect(base: Reading, adapter: Reading) -> float:
    """Returns the mean absolute difference of two readings (nats) over the tokens that both tell.

    NaN where it cannot be told: readings of different lengths, or no token that both tell.
    """
    found = _known(base, adapter)
    return math.fsum(abs(a - b) for a, b in found) / len(found) if found else math.nan


def has_effect(base: Reading, adapter: Reading, base_again: Reading = ()) -> bool | None:
    """Returns whether an adapter changes what the base makes of the text; None where that cannot be told.

    ``base_again`` is a second reading by the base, made beside the adapter's: it shows how far readings
    differ by chance. None is no alarm: callers that act on a missing effect test ``is False``.
    """
    size = effect(base, adapter)
    if math.isnan(size):
        return None
    chance = effect(base, base_again)
    return size > (SAME if math.isnan(chance) else max(SAME, BATCH_NOISE * chance))


def agrees(
    base: Reading, adapter: Reading, reference_base: Reading, reference_adapter: Reading
) -> bool | None:
    """Returns whether a server's adapter has the effect that a reference's has; None where it cannot be told.

    The differences to the base are compared, each server's to its own: so other precisions and quantised
    bases are not held against the adapter, and what the bases' readings differ by is tolerated on top of
    TOLERANCE. It cannot be told where servers cut the text into other numbers of tokens, where no token is
    told by all four readings, and where the reference's effect is too small for what the bases differ by.
    """
    told = _known(base, adapter, reference_base, reference_adapter)
    expected = _size([reference - bare for _, _, bare, reference in told])
    chance = _size([ours - bare for ours, _, bare, _ in told])
    tolerance = TOLERANCE * expected + PRECISION_NOISE * chance + SAME
    if not told or tolerance > MOST_TOLERANCE * expected:
        return None
    off = _size([(served - ours) - (reference - bare) for ours, served, bare, reference in told])
    return off <= tolerance


def _known(*readings: Reading) -> list[tuple[float, ...]]:
    """Returns what all readings say of each token that all tell; nothing where their lengths differ."""
    if len({len(reading) for reading in readings}) != 1:
        return []
    told = []
    for values in zip(*readings, strict=True):
        known = tuple(value for value in values if value is not None and math.isfinite(value))
        if len(known) == len(values):
            told.append(known)
    return told


def _size(values: Sequence[float]) -> float:
    """Returns the root mean square, 0 of nothing."""
    return math.sqrt(math.fsum(value * value for value in values) / len(values)) if values else 0.0
