"""Whitening: directions in which the examples of one task differ count less in telling tasks apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Packed = NDArray[np.float16]
Owners = NDArray[np.intp]


FEWEST_CENTRED = 3
"""Tasks from which on their mean is taken out: of two, what is left says nothing but which of them it is."""


def middle(centroids: Floats) -> Floats:
    """Returns (d,), the mean of (T, d) centroids; zeros where there are fewer than FEWEST_CENTRED."""
    if len(centroids) < FEWEST_CENTRED:
        return np.zeros(centroids.shape[1])
    mean: Floats = centroids.mean(axis=0, dtype=np.float64)
    return mean


def scatter_of(products: Floats, sums: Floats, counts: Owners) -> Floats | None:
    """Returns (d, d), the covariance of vectors within their tasks, of mean diagonal 1.

    ``products`` (d, d) is Σ x xᵀ over all vectors, ``sums`` (T, d) their sums by task and ``counts`` (T,) how
    many there are. None where no vector differs from its task's mean.
    """
    means = sums / np.sqrt(counts)[:, None]
    scatter = products - means.T @ means
    scale = np.trace(scatter) / len(scatter)
    return scatter / scale if scale > 1e-12 * max(int(counts.sum()), 1) else None


def packed(scatter: Floats) -> Packed:
    """Returns the upper triangle, row by row, (d (d + 1) / 2,): what a snapshot carries."""
    return scatter[np.triu_indices(len(scatter))].astype(np.float16)


def unpacked(values: Packed) -> Floats:
    """Returns the symmetric matrix whose upper triangle this is."""
    size = int((np.sqrt(8 * len(values) + 1) - 1) / 2)
    scatter = np.zeros((size, size))
    scatter[np.triu_indices(size)] = values
    return scatter + np.triu(scatter, 1).T


def precision(scatter: Floats, shrinkage: float) -> Floats:
    """Returns ((1 - λ) S + λ I)⁻¹ for the shrinkage λ, above 0 and at most 1; at 1 nothing is whitened."""
    mixed = (1.0 - shrinkage) * scatter + shrinkage * np.eye(len(scatter))
    return np.asarray(np.linalg.inv(mixed), dtype=np.float64)


def whitener(scatter: Floats, shrinkage: float) -> NDArray[np.float32]:
    """Returns W (d, d): cosines of x W and y W are those of linear discriminant analysis without its bias."""
    return np.linalg.cholesky(precision(scatter, shrinkage)).astype(np.float32)
