"""Matching by example: measurements, parts of operations, and the evidence of an affinity."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Column = sa.Column[Any]


def _now(name: str) -> Column:
    default = sa.text("clock_timestamp()")
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=False)


def upgrade() -> None:
    """Affinities that are there count as eligible at their own score, as they did."""
    for column in _evidence():
        op.add_column("affinity", column)
        op.alter_column("affinity", column.name, server_default=None)
    op.execute("UPDATE affinity SET shrunk_score = score")
    op.add_column("operation", sa.Column("progress", JSONB(), nullable=False, server_default="{}"))
    op.alter_column("operation", "progress", server_default=None)
    op.add_column("outbox", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.alter_column("outbox", "priority", server_default=None)
    _create_measurement()
    _create_operation_part()


def downgrade() -> None:
    """Drops what upgrade() made."""
    op.drop_table("operation_part")
    op.drop_table("measurement")
    op.drop_column("outbox", "priority")
    op.drop_column("operation", "progress")
    for column in reversed(_evidence()):
        op.drop_column("affinity", column.name)


def _evidence() -> list[Column]:
    return [
        sa.Column("shrunk_score", sa.Float(), nullable=False, server_default="0"),
        sa.Column("eligible", sa.Boolean(), nullable=False, server_default="true"),
        sa.Column("judged_score", sa.Float(), nullable=True),
        sa.Column("judged_count", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("lift", sa.Float(), nullable=True),
        sa.Column("lift_error", sa.Float(), nullable=False, server_default="0"),
        sa.Column("likelihood", sa.Float(), nullable=True),
        sa.Column("place", sa.Integer(), nullable=False, server_default="0"),
    ]


def _create_measurement() -> None:
    op.create_table(
        "measurement",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "task_id", "digest", "metric")),
        sa.Column("metric_version", sa.Integer(), nullable=False),
        sa.Column("prompt_digest", sa.String(), nullable=False),
        sa.Column("keys", ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("scores", ARRAY(DOUBLE_PRECISION()), nullable=False),
        sa.Column("likelihoods", ARRAY(DOUBLE_PRECISION()), nullable=False),
        _now("measure_time"),
        sa.ForeignKeyConstraint(["tenant", "task_id"], ["task.tenant", "task.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant", "task_id", "digest", "metric", "metric_version", "prompt_digest"),
    )


def _create_operation_part() -> None:
    op.create_table(
        "operation_part",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "operation_id", "task_id")),
        sa.Column("state", sa.String(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("done", "left", "in_flight")),
        sa.Column("alive", JSONB(), nullable=False),
        _now("update_time"),
        sa.ForeignKeyConstraint(
            ["tenant", "operation_id"], ["operation.tenant", "operation.id"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "operation_id", "task_id"),
    )
