"""The trace that a change was made in goes on in the work that it owes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Work that is owed already is in no trace, nor is what code that knows of none writes."""
    op.add_column("outbox", sa.Column("traceparent", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """Drops what upgrade() made."""
    op.drop_column("outbox", "traceparent")
