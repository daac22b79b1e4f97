"""The table of pool manifests, proposed and published."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, ForeignKeyConstraint, Index, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel


class PoolManifest(SQLModel, table=True):
    """What TGI instances of a pool should load: a lorauter.manifests.Proposal by its content.

    The one with the newest ``publish_time`` is in force. Routers hear of it once ``write_time`` is set: from
    then on the composites among its entries are in the adapter store.
    """

    __tablename__ = "pool_manifest"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "pool"], ["pool.tenant", "pool.id"], ondelete="CASCADE"),
        Index("pool_manifest_created", "tenant", "pool", "create_time", "digest"),
    )

    tenant: str = Field(primary_key=True)
    pool: str = Field(primary_key=True)
    digest: str = Field(primary_key=True)
    entries: list[dict[str, Any]] = Field(sa_column=Column(JSONB, nullable=False))
    """[{"name", "rank", "size_bytes", "gain", "members": [{"adapter_id", "version", "digest", "weight"}]}]"""
    left_out: list[dict[str, Any]] = Field(sa_column=Column(JSONB, nullable=False))
    """[{"size_bytes", "gain", "reason", "members"}]."""
    shards: int
    """Of the instances that its composites are written for."""
    memory_bytes: int = Field(sa_type=BigInteger)
    expected_share: float
    published_share: float
    create_time: datetime = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp(), "nullable": False},
    )
    """When it was proposed last."""
    publish_time: datetime | None = Field(default=None, sa_type=DateTime(timezone=True), nullable=True)
    """When it was published last."""
    write_time: datetime | None = Field(default=None, sa_type=DateTime(timezone=True), nullable=True)
