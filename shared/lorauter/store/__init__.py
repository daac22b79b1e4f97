"""PostgreSQL, the truth of the whole suite: tables, transactions, migrations. For registry and worker."""

from lorauter.store.session import Write, create_engine, ping, read, write

__all__ = ["Write", "create_engine", "ping", "read", "write"]
