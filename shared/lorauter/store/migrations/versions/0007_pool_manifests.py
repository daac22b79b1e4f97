"""Pool manifests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "pool_manifest",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "pool", "digest")),
        *(sa.Column(name, JSONB(), nullable=False) for name in ("entries", "left_out")),
        sa.Column("shards", sa.Integer(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("expected_share", "published_share")),
        sa.Column(
            "create_time",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        *(sa.Column(name, sa.DateTime(timezone=True)) for name in ("publish_time", "write_time")),
        sa.PrimaryKeyConstraint("tenant", "pool", "digest"),
        sa.ForeignKeyConstraint(["tenant", "pool"], ["pool.tenant", "pool.id"], ondelete="CASCADE"),
    )
    op.create_index("pool_manifest_created", "pool_manifest", ["tenant", "pool", "create_time", "digest"])


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("pool_manifest")
