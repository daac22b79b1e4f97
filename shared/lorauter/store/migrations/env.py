"""What Alembic runs: migrations on the connection that lorauter.store.migrate hands over."""

from __future__ import annotations

from alembic import context

from lorauter.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.Generation.metadata,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
