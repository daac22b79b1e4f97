"""API keys, and who changed what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "api_key",
        *_texts("id", "tenant", "description"),
        sa.Column("scopes", ARRAY(sa.String()), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("any_tenant", sa.Boolean(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("requests_per_minute", "tokens_per_minute")
        ),
        *_texts("successor"),
        *(sa.Column(name, sa.DateTime(timezone=True)) for name in ("expire_time", "revoke_time")),
        _now("create_time"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("api_key_created", "api_key", ["tenant", "create_time", "id"])
    op.create_table(
        "audit_entry",
        *_texts("tenant", "id"),
        _now("time"),
        *_texts("key_id", "method", "resource", "request_id"),
        sa.Column("generation", sa.BigInteger()),
        sa.PrimaryKeyConstraint("tenant", "id"),
    )
    op.create_index("audit_entry_time", "audit_entry", ["tenant", "time", "id"])


def downgrade() -> None:
    """Drops the tables, and with them all keys."""
    op.drop_table("audit_entry")
    op.drop_table("api_key")


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def _now(name: str) -> sa.Column[object]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
    )
