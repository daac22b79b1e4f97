"""What backends can do, and how pools' decisions are served."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COLUMNS = (("backend", "limits"), ("pool", "serving"))


def upgrade() -> None:
    """Backends and pools that are there get the defaults."""
    for table, column in _COLUMNS:
        op.add_column(table, sa.Column(column, JSONB(), nullable=False, server_default="{}"))
        op.alter_column(table, column, server_default=None)


def downgrade() -> None:
    """Drops what upgrade() made."""
    for table, column in _COLUMNS:
        op.drop_column(table, column)
