"""Alembic's migrations, which lorauter.store.migrate runs."""
