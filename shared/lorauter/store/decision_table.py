"""The table of recorded decisions, which the worker fills and empties."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Index, LargeBinary, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel


class Decision(SQLModel, table=True):
    """A decision of a router, as lorauter.decisions records it; ``tenant`` asked.

    It outlives what it names: pools, tasks and adapters are ids without foreign keys.
    """

    __table_args__ = (
        Index("decision_pool_time", "tenant", "pool", "time", "id"),
        Index("decision_time", "tenant", "time", "id"),
    )

    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    pool: str
    pool_tenant: str = Field("", sa_column=Column(String, nullable=False, server_default=""))
    """Whose pool that is; empty: the tenant's own."""
    time: datetime = Field(sa_type=DateTime(timezone=True))
    """When the router made it, on its clock."""
    strategy: str
    generation: int = Field(sa_type=BigInteger)
    profile_digest: str
    encoder_digest: str
    stale: bool
    action: str
    best_adapter: str
    best_version: int
    expected_utility: float
    typicality: float
    adapters: list[dict[str, Any]] = Field(sa_column=Column(JSONB, nullable=False))
    """[{"adapter_id", "version", "weight"}], largest weight first."""
    tasks: list[dict[str, Any]] = Field(sa_column=Column(JSONB, nullable=False))
    """[{"task_id", "similarity", "probability"}], most probable first."""
    options: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    """{"max_adapters", "tags", "exclude_tasks", "exclude_adapters"}."""
    text_digest: str
    vector: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    terms: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    text: str
