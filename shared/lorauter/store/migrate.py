"""Brings a database's schema to a revision, with the Alembic migrations of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, text

from lorauter.errors import InvalidArgument
from lorauter.store.schema import newer_schema, revisions
from lorauter.store.session import create_engine, translated_errors

MIGRATIONS = Path(__file__).parent / "migrations"

_LOCK = 0x10_4A_07E4
"""The advisory lock that lets one process migrate a database at a time."""


def migrate(url: str, revision: str = "head") -> None:
    """Upgrades the schema to ``revision`` in one transaction; does nothing if it is there already.

    Raises InvalidArgument (UNKNOWN_REVISION), FailedPrecondition (SCHEMA_NEWER) if a newer lorauter migrated
    the database, or Unavailable (DATABASE_UNAVAILABLE).
    """
    with _config(url) as config:
        command.upgrade(config, revision)


def downgrade(url: str, revision: str) -> None:
    """Takes the schema back to ``revision`` (``base``: nothing is left) in one transaction.

    Raises InvalidArgument (UNKNOWN_REVISION), FailedPrecondition (SCHEMA_NEWER) if a newer lorauter migrated
    the database, or Unavailable (DATABASE_UNAVAILABLE).
    """
    with _config(url) as config:
        command.downgrade(config, revision)


@contextmanager
def _config(url: str) -> Iterator[Config]:
    engine = create_engine(url, pool_size=1)
    try:
        with translated_errors(), engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            _refuse_newer(connection)
            yield config
    except CommandError as error:
        raise InvalidArgument("UNKNOWN_REVISION", f"{error}: name a revision of this version") from None
    finally:
        engine.dispose()


def _refuse_newer(connection: Connection) -> None:
    for found in MigrationContext.configure(connection).get_current_heads():
        if found not in revisions():
            raise newer_schema(found)
