"""Recorded decisions."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Column = sa.Column[Any]


def _columns(kind: Any, *names: str) -> list[Column]:
    return [sa.Column(name, kind, nullable=False) for name in names]


def upgrade() -> None:
    """Makes the table with its indexes."""
    op.create_table(
        "decision",
        *_columns(sa.String(), "tenant", "id", "pool"),
        *_columns(sa.DateTime(timezone=True), "time"),
        *_columns(sa.String(), "strategy"),
        *_columns(sa.BigInteger(), "generation"),
        *_columns(sa.String(), "profile_digest", "encoder_digest"),
        *_columns(sa.Boolean(), "stale"),
        *_columns(sa.String(), "action", "best_adapter"),
        *_columns(sa.Integer(), "best_version"),
        *_columns(sa.Float(), "expected_utility", "typicality"),
        *_columns(JSONB(), "adapters", "tasks", "options"),
        *_columns(sa.String(), "text_digest"),
        *_columns(sa.LargeBinary(), "vector", "terms"),
        *_columns(sa.String(), "text"),
        sa.PrimaryKeyConstraint("tenant", "id"),
    )
    op.create_index("decision_pool_time", "decision", ["tenant", "pool", "time", "id"])
    op.create_index("decision_time", "decision", ["tenant", "time", "id"])


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("decision")
