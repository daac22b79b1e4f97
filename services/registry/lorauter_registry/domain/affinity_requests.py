"""What the registry is asked about affinities; field names, bounds and meanings are the protos'."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import ConfigDict, FailFast, Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from lorauter.errors import InvalidArgument, LorauterError
from lorauter.identifiers import BASE
from lorauter_registry.domain.fields import (
    Count,
    Id,
    Moment,
    OptionalId,
    Share,
    Text,
    Version,
    WriteRequest,
)
from lorauter_registry.domain.requests import ListOfPool

MAX_AFFINITIES = 100_000
"""Most affinities of an import."""

MAX_IMPORT_BYTES = 32 * 1024 * 1024
"""Largest import, as a body or as a message: 100,000 affinities with all their fields as CSV."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class AffinityInput:
    """An affinity to import: what a list gave out, or a score measured elsewhere.

    Small in memory, for an import has up to 100,000. Raises InvalidArgument (INVALID_FIELD).
    """

    task_id: Id
    adapter_id: Id
    score: Share
    count: Count
    pool: OptionalId = ""
    task_version: Version = 0
    adapter_version: Version = 0
    standard_error: Share = 0.0
    metric: Annotated[Text, Field(max_length=63)] = ""
    metric_version: Count = 0
    prompt_digest: Annotated[Text, Field(max_length=128)] = ""
    round: Count = 0
    imported: bool = True
    measure_time: Annotated[Moment, Field(ge=_EPOCH)] | None = None
    shrunk_score: Share | None = None
    eligible: bool | None = None
    judged_score: Share | None = None
    judged_count: Count = 0
    lift: Annotated[float, Field(ge=-1, le=1)] | None = None
    lift_error: Annotated[float, Field(ge=0)] = 0.0
    likelihood: Annotated[float, Field(le=0)] | None = None
    place: Count = 0

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> AffinityInput:
        if self.adapter_id == BASE and self.adapter_version:
            raise _invalid("the base has adapter_version 0", "adapter_version")
        if self.adapter_id == BASE and self.eligible:
            raise _invalid("the base is never eligible: leave it out, or give false", "eligible")
        if self.adapter_id != BASE and self.eligible is False and self.shrunk_score is None:
            raise _invalid(
                "an adapter that is not eligible needs shrunk_score, which is at most the base's",
                "shrunk_score",
            )
        if self.count == 0 and (self.likelihood is None or self.eligible is not False):
            raise _invalid(
                "count is 0: at least one example stands behind a score, but for an adapter that is not "
                "eligible and fell by its likelihood alone",
                "count",
            )
        if (self.judged_score is None) != (self.judged_count == 0):
            raise _invalid("judged_score and judged_count go together: give both or none", "judged_count")
        return self


def _invalid(message: str, field: str) -> InvalidArgument:
    return InvalidArgument("INVALID_FIELD", message, field=field)


AFFINITY_FIELDS = tuple(field.name for field in fields(AffinityInput))
"""What an affinity may say, in the order in which it is written."""

_KNOWN = frozenset(AFFINITY_FIELDS)


def _placed(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Reads an affinity; lets its place in the import be added to an error of lorauter's own."""
    unknown = next((name for name in value if name not in _KNOWN), None) if isinstance(value, dict) else None
    try:
        if unknown is not None:
            raise unknown_field(unknown)
        return read(value)
    except LorauterError as error:
        raise PydanticCustomError(error.reason, "{text}", {"text": error.message}) from None


def unknown_field(name: str) -> InvalidArgument:
    """Returns the error for a field, or column, that no affinity has."""
    return _invalid(f"{name[:80]!r} is not known: use {', '.join(AFFINITY_FIELDS)}", name[:80])


class ImportAffinities(WriteRequest):
    """Imports affinities, all or none."""

    affinities: Annotated[
        tuple[Annotated[AffinityInput, WrapValidator(_placed)], ...],
        Field(min_length=1, max_length=MAX_AFFINITIES),
        FailFast(),
    ]


class ListAffinities(ListOfPool):
    """Asks for a page of affinities."""

    task_id: OptionalId = ""
    adapter_id: OptionalId = ""
