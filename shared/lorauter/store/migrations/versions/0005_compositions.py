"""Measured compositions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table; tasks that are matched have none until they are matched again."""
    op.create_table(
        "composition",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "task_id")),
        sa.Column("task_version", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("name", "metric")),
        sa.Column("metric_version", sa.Integer(), nullable=False),
        sa.Column("prompt_digest", sa.String(), nullable=False),
        sa.Column("members", JSONB(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("standard_error", "gain", "gain_error")),
        sa.Column(
            "measure_time",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant", "task_id", "task_version", "name"),
        sa.ForeignKeyConstraint(["tenant", "task_id"], ["task.tenant", "task.id"], ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("composition")
