"""The table of work that is owed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Column, DateTime, Index
from sqlmodel import Field, SQLModel

from lorauter.store.columns import now_column


class Outbox(SQLModel, table=True):
    """Work that a committed change owes: written in its transaction, gone when its effect is seen.

    ``topic`` is ``index`` (bring the index to the newest generation; ``key`` is the pool) or ``matching``
    (carry on an operation; ``key`` is its id, or ``operation/task`` for a part of it). Rows hold an
    identity, never a payload: the worker reads the current state. A row is free when ``lease_until`` is
    past; ``fence`` grows with every claim, and only the newest claim may finish the row.
    """

    __table_args__ = (
        Index("outbox_due", "topic", "available_at"),
        Index("outbox_key", "tenant", "topic", "key"),
    )

    id: int | None = Field(default=None, sa_column=Column(BigInteger, primary_key=True, autoincrement=True))
    tenant: str
    topic: str
    key: str
    generation: int = Field(sa_type=BigInteger)
    priority: int = 0
    """Higher ones are claimed first."""
    attempts: int = 0
    fence: int = Field(default=0, sa_type=BigInteger)
    lease_owner: str = ""
    available_at: datetime = now_column()
    lease_until: datetime | None = Field(default=None, sa_type=DateTime(timezone=True), nullable=True)
    last_error: str = ""
    create_time: datetime = now_column()
    traceparent: str = Field(default="", sa_column_kwargs={"server_default": ""})
    """The place in a trace, as W3C Trace Context writes it, that the change was made at; empty: in none."""
