"""Rounds float32 to what servers hold, once, and never to infinity. numpy knows no bfloat16: it is bits."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorauter.errors import UnprocessableRequest

Precision = Literal["float32", "float16", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")

_HIDDEN = np.uint32(0xFFFF)


def rounded(matrix: NDArray[np.float32], precision: Precision) -> NDArray[Any]:
    """Returns ``matrix`` in ``precision``, to nearest, ties to even; bfloat16 as uint16 bits.

    Raises UnprocessableRequest (COMPOSITE_NOT_FINITE) for what is NaN or infinite there.
    """
    if precision == "bfloat16":
        return _bfloat16_bits(matrix)
    with np.errstate(over="ignore"):
        result = matrix.astype(np.float32 if precision == "float32" else np.float16)
    if not np.isfinite(result).all():
        raise _overflow(precision)
    return result


def _bfloat16_bits(matrix: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(matrix, dtype=np.float32).view(np.uint32)
    upper = ((bits >> 16) & 1) + (_HIDDEN >> 1)
    result = ((bits + upper) >> 16).astype(np.uint16)
    if not np.isfinite(matrix).all() or bool(((result & 0x7F80) == 0x7F80).any()):
        raise _overflow("bfloat16")
    return result


def _overflow(precision: Precision) -> UnprocessableRequest:
    return UnprocessableRequest(
        "COMPOSITE_NOT_FINITE",
        f"the weights times the adapters exceed {precision}: use smaller weights, or bfloat16 or float32",
        field="precision",
    )
