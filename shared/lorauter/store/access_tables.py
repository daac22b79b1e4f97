"""The tables of API keys and of who changed what."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Column, Index, LargeBinary
from sqlalchemy.dialects.postgresql import ARRAY, VARCHAR
from sqlmodel import Field, SQLModel

from lorauter.store.columns import now_column, time_column


class ApiKey(SQLModel, table=True):
    """A key: who has it acts for ``tenant``, and for others if ``any_tenant``."""

    __tablename__ = "api_key"
    __table_args__ = (Index("api_key_created", "tenant", "create_time", "id"),)

    id: str = Field(primary_key=True)
    tenant: str
    description: str = ""
    scopes: list[str] = Field(sa_column=Column(ARRAY(VARCHAR), nullable=False))
    digest: bytes = Field(sa_type=LargeBinary)
    """SHA-256 of the whole key, which is nowhere."""
    any_tenant: bool = False
    requests_per_minute: int = Field(default=0, sa_type=BigInteger)
    tokens_per_minute: int = Field(default=0, sa_type=BigInteger)
    successor: str = ""
    """The id of the key that replaces it; empty: none."""
    expire_time: datetime | None = time_column()
    revoke_time: datetime | None = time_column()
    create_time: datetime = now_column()


class AuditEntry(SQLModel, table=True):
    """A write that was accepted, in the transaction of what it wrote."""

    __tablename__ = "audit_entry"
    __table_args__ = (Index("audit_entry_time", "tenant", "time", "id"),)

    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    time: datetime = now_column()
    key_id: str
    """Empty where access was open."""
    method: str
    resource: str
    request_id: str
    generation: int | None = Field(default=None, sa_type=BigInteger)
    """None where it made none."""
