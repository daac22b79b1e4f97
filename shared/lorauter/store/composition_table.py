"""The table of measured compositions, which the worker writes with a task's affinities."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Column, DateTime, ForeignKeyConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel


class Composition(SQLModel, table=True):
    """What a weighted set of adapters scored on examples of a task version that did not choose it.

    ``members`` are {"adapter_id", "version", "digest", "weight"}, heaviest first; ``name`` is
    lorauter.matching.set_name's of their digests and weights. The rest is a lorauter.matching.Judgement.
    """

    __table_args__ = (
        ForeignKeyConstraint(["tenant", "task_id"], ["task.tenant", "task.id"], ondelete="CASCADE"),
    )

    tenant: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    task_version: int = Field(primary_key=True)
    name: str = Field(primary_key=True)
    metric: str
    metric_version: int
    prompt_digest: str
    members: list[dict[str, Any]] = Field(sa_column=Column(JSONB, nullable=False))
    score: float
    count: int
    standard_error: float
    gain: float
    gain_error: float
    measure_time: datetime = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp(), "nullable": False},
    )
