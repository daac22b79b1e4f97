"""Deciding recorded queries anew: what is kept of a query, and a pool under other constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lorauter.errors import InvalidArgument
from lorauter.routing.bm25 import Lexicon, Terms
from lorauter.routing.fitting import make_profile
from lorauter.routing.model import Pool, Vector

MOST_CONSTANTS = 256
"""Most constants of a profile."""

_LIMITS = {
    "shrinkage": (0.01, 1.0),
    "dense_weight": (0.0, 1e6),
    "lexical_weight": (0.0, 1e6),
    "default_tasks": (1.0, 64.0),
    "tasks": (1.0, 64.0),
    "temperature": (1e-4, 1e4),
}
"""What strategies can decide by: least and largest value."""


def pack_vector(vector: Vector) -> bytes:
    """Returns a unit vector (d,) as float16, little-endian: 2 d bytes, components within 0.0005 of it."""
    return np.asarray(vector, dtype="<f2").tobytes()


def pack_terms(terms: Terms, lexicon: Lexicon) -> bytes:
    """Returns the terms that ``lexicon`` knows: n ids (uint32, ascending), n counts (float32), little-endian.

    The others take no part in scores, so leaving them out changes no decision of this lexicon.
    """
    places = np.minimum(np.searchsorted(lexicon.ids, terms.ids), max(len(lexicon.ids) - 1, 0))
    known = lexicon.ids[places] == terms.ids if len(lexicon.ids) else np.zeros(len(terms.ids), dtype=bool)
    ids, counts = terms.ids[known].astype("<u4"), terms.counts[known].astype("<f4")
    return bytes(ids.tobytes() + counts.tobytes())


def unpack_vector(data: bytes) -> Vector:
    """Returns float32 (d,); raises InvalidArgument (INVALID_FEATURES)."""
    if not data or len(data) % 2:
        raise _invalid("vector", f"has {len(data)} bytes, which are no float16 numbers")
    vector = np.frombuffer(data, dtype="<f2").astype(np.float32)
    if not np.isfinite(vector).all():
        raise _invalid("vector", "is not finite")
    return vector


def unpack_terms(data: bytes) -> Terms:
    """Returns the terms that pack_terms packed; raises InvalidArgument (INVALID_FEATURES)."""
    if len(data) % 8:
        raise _invalid("terms", f"has {len(data)} bytes, which are no ids with as many counts")
    count = len(data) // 8
    ids = np.frombuffer(data, dtype="<u4", count=count).astype(np.uint32)
    counts = np.frombuffer(data, dtype="<f4", offset=4 * count).astype(np.float64)
    if not (np.isfinite(counts) & (counts > 0)).all() or (ids[1:] <= ids[:-1]).any():
        raise _invalid("terms", "must have ids that ascend and counts above 0")
    return Terms(ids, counts)


def under(pool: Pool, constants: Mapping[str, float]) -> Pool:
    """Returns ``pool`` with a profile of other constants; all else that was fitted stays.

    Raises InvalidArgument (INVALID_CONSTANTS).
    """
    if len(constants) > MOST_CONSTANTS:
        raise _unusable(f"there are {len(constants)}: a profile has at most {MOST_CONSTANTS}")
    for name, value in constants.items():
        low, high = _LIMITS.get(name, (-np.inf, np.inf))
        if not np.isfinite(value) or not low <= value <= high:
            raise _unusable(f"{name[:80]!r} is {value}: give one that is finite, from {low:g} to {high:g}")
    profile = make_profile(constants, pool.profile.figures)
    return replace(pool, profile=replace(profile, scatter=pool.profile.scatter))


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_FEATURES", f"{field} {problem}: send what a decision recorded", field=field
    )


def _unusable(problem: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_CONSTANTS", f"constants: {problem}; send those of a profile", field="constants"
    )
