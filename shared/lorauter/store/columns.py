"""Columns that several tables have."""

from __future__ import annotations

from typing import Any

from sqlalchemy import DateTime, func
from sqlmodel import Field


def now_column() -> Any:
    """Returns a column of the time at which the database takes the row in."""
    return Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp(), "nullable": False},
    )


def time_column() -> Any:
    """Returns a column of a time that may not have come."""
    return Field(default=None, sa_type=DateTime(timezone=True), nullable=True)
