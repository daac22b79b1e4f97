"""What the columns of an archive's rows may hold."""

from __future__ import annotations

import base64
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from lorauter_registry.domain.fields import MAX_INT32, MAX_INT64, Moment, Text, Value

MAX_MEASURED = 1_000_000
"""Most examples that one measurement holds."""

HEX = r"[0-9a-f]{64}"
Digest = Annotated[str, Field(pattern=rf"^sha256:{HEX}$")]
AnyDigest = Annotated[Text, Field(max_length=128)]
Metric = Annotated[Text, Field(min_length=1, max_length=63)]
Number = Annotated[int, Field(ge=1, le=MAX_INT32)]
Big = Annotated[int, Field(ge=0, le=MAX_INT64)]
Features = Annotated[tuple[Number, ...], Field(min_length=2, max_length=2)]
Scored = Annotated[tuple[float | None, ...], Field(max_length=MAX_MEASURED)]
"""Not measured: null."""

Key = Annotated[int, Field(ge=-MAX_INT64 - 1, le=MAX_INT64)]


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise ValueError("is not Base64") from None


Bytes = Annotated[bytes, BeforeValidator(_decoded)]


def whole_floats(value: bytes) -> bytes:
    """Returns a vector of float32; raises ValueError."""
    if not value or len(value) % 4 or len(value) > 4 * 65_536:
        raise ValueError("is not a vector of 1 to 65,536 numbers of 4 bytes")
    return value


class Row(Value):
    """A row of a table; the tenant is that of whoever imports it."""

    table: ClassVar[str]

    def values(self) -> dict[str, Any]:
        """Returns the columns' values, as PostgreSQL takes them."""
        return self.model_dump()


class Changed(Row):
    """A row that callers change."""

    revision: Number
    generation: Big
    create_time: Moment
    update_time: Moment
