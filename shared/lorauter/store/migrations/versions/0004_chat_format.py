"""How a pool's base model reads chats and ends answers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of pools that are there it is not known, so nothing is refused for it."""
    op.add_column("pool", sa.Column("chat_format", JSONB(), nullable=False, server_default="{}"))
    op.alter_column("pool", "chat_format", server_default=None)


def downgrade() -> None:
    """Drops what upgrade() made."""
    op.drop_column("pool", "chat_format")
