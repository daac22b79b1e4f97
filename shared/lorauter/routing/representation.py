"""What a task is represented by: the mean of its examples' vectors and their terms."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorauter.errors import InvalidArgument
from lorauter.routing.lexical import term_frequencies
from lorauter.routing.model import Vector

MAX_TERMS = 4096
"""Most terms that a task keeps: its most frequent ones, which is where a template shows."""


@dataclass(frozen=True, slots=True, eq=False)
class TaskRepresentation:
    """``centroid``: float32 (d,), not normalised. ``terms``: raw frequencies by 32-bit hash."""

    centroid: Vector
    terms: Mapping[int, float]


def represent(vectors: NDArray[np.float32], texts: Iterable[str]) -> TaskRepresentation:
    """Returns the representation of a task from its examples' inputs.

    ``vectors`` is (n, d), the unit vectors of the inputs, n at least 1; ``texts`` are the same inputs
    as routed. The centroid does not depend on the order of the examples beyond the last float32 bit.
    Raises InvalidArgument (INVALID_VECTORS) for another shape or a value that is not finite.
    """
    checked = check_vectors(vectors)
    if len(checked) == 0:
        raise InvalidArgument("INVALID_VECTORS", "a task needs the vector of at least one example")
    centroid = checked.mean(axis=0, dtype=np.float64).astype(np.float32)
    centroid.setflags(write=False)
    total: dict[int, float] = {}
    for text in texts:
        for term, count in term_frequencies(text).items():
            total[term] = total.get(term, 0.0) + count
    kept = heapq.nsmallest(MAX_TERMS, total.items(), key=lambda item: (-item[1], item[0]))
    return TaskRepresentation(centroid=centroid, terms=dict(sorted(kept)))


def check_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns ``vectors`` as float32 if they are a finite (n, d) array, else raises INVALID_VECTORS."""
    checked = np.asarray(vectors, dtype=np.float32)
    if checked.ndim != 2 or checked.shape[1] == 0:
        raise InvalidArgument(
            "INVALID_VECTORS", f"vectors have shape {checked.shape}: give (examples, dimension)"
        )
    if not np.isfinite(checked).all():
        raise InvalidArgument("INVALID_VECTORS", "a vector holds a value that is not finite: encode again")
    return checked


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a (d,) ``vector`` scaled to length 1; one of zeros, or not finite, is returned as it is."""
    exact = vector.astype(np.float64)
    length = math.sqrt(exact @ exact)
    return (exact / length).astype(np.float32) if 0 < length < math.inf else vector


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns (n, d) ``rows`` scaled to length 1; a row of zeros stays zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))[:, None]
    scaled: NDArray[np.float32] = np.divide(
        rows, lengths, out=np.zeros(rows.shape, dtype=np.float64), where=lengths > 0
    ).astype(np.float32)
    return scaled
