"""What the registry is asked about matchings and other operations.

A class is named as its RPC; field names, bounds and meanings are the protos'.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from lorauter.errors import InvalidArgument
from lorauter_registry.domain.fields import MAX_INT64, Id, Text, WriteRequest
from lorauter_registry.domain.requests import ListOfPool

MAX_DURATION = timedelta(days=3_650)


def _seconds(value: Any) -> Any:
    """Reads protobuf's JSON form of a duration, ``90s``; pydantic reads ISO 8601's, ``PT90S``."""
    if isinstance(value, str) and value.endswith("s"):
        try:
            return timedelta(seconds=float(value[:-1]))
        except (ValueError, OverflowError):
            return value
    return value


Duration = Annotated[
    timedelta,
    BeforeValidator(_seconds),
    Field(le=MAX_DURATION, description="Seconds with an s, as `90s`, or ISO 8601, as `PT90S`."),
]


class ListOperations(ListOfPool):
    """Asks for a page of operations."""


class StartMatching(WriteRequest):
    """Starts a matching."""

    pool: Id
    task_ids: Annotated[tuple[Id, ...], Field(max_length=10_000)] = ()
    adapter_ids: Annotated[tuple[Id, ...], Field(max_length=10_000)] = ()
    remeasure: bool = False
    strategy: Annotated[Text, Field(max_length=63)] = ""
    max_evaluations: Annotated[int, Field(le=MAX_INT64)] | None = None
    max_duration: Duration | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0

    @model_validator(mode="after")
    def _budgets_buy_something(self) -> Self:
        if self.max_evaluations is not None and self.max_evaluations < 1:
            raise InvalidArgument(
                "ZERO_BUDGET",
                f"max_evaluations is {self.max_evaluations}, which measures nothing: "
                "give at least 1, or leave it out for no limit",
                field="max_evaluations",
            )
        if self.max_duration is not None and self.max_duration <= timedelta():
            raise InvalidArgument(
                "ZERO_BUDGET",
                f"max_duration is {self.max_duration.total_seconds():g} s, which measures nothing: "
                "give more than 0, or leave it out for no limit",
                field="max_duration",
            )
        return self


class CancelOperation(WriteRequest):
    """Cancels an operation."""

    id: Id
