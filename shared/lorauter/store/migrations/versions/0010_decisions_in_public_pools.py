"""Decisions say whose pool they were made in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Decisions that are there, and those of workers that know no better, were made in their own tenant's."""
    op.add_column("decision", sa.Column("pool_tenant", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """Drops what upgrade() made."""
    op.drop_column("decision", "pool_tenant")
