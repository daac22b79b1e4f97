"""Says whether a database's schema is the one that this code was written for."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from sqlalchemy import Engine, inspect, text

from lorauter.errors import FailedPrecondition, Unavailable
from lorauter.store.session import create_engine, translated_errors

_VERSIONS = Path(__file__).parent / "migrations" / "versions"
_LOOK_SECONDS = 0.5
_REFUSAL = re.compile(r"FATAL: +(password authentication failed.*|(?:role|database) .* does not exist)")
"""PostgreSQL's words, which drivers hand on without a code; in another language it counts as away."""


def revisions() -> list[str]:
    """Returns the revisions that this code knows, oldest first."""
    return sorted(path.name.partition("_")[0] for path in _VERSIONS.glob("[0-9]*_*.py"))


def check_schema(engine: Engine) -> None:
    """Returns if the schema is at the newest revision that this code knows.

    Raises FailedPrecondition: SCHEMA_NEWER if a newer lorauter migrated the database, SCHEMA_OLDER if it
    waits to be migrated; Unavailable (DATABASE_UNAVAILABLE).
    """
    known, found = revisions(), read_revision(engine)
    if found == known[-1]:
        return
    if found and found not in known:
        raise newer_schema(found)
    raise FailedPrecondition(
        "SCHEMA_OLDER",
        f"DATABASE_URL: the database is {f'at revision {found}' if found else 'empty'}, this lorauter needs "
        f"{known[-1]}: run `lorauter-registry migrate`, then start it again",
    )


def refuse_other_schema(url: str) -> None:
    """Ends a process that starts, with status 2 and a message, if check_schema() refuses its database.

    So it does where PostgreSQL knows no such user, password or database. One that is away refuses nothing.
    No connection is left, so that the process may fork.
    """
    engine = create_engine(url, pool_size=1)
    try:
        check_schema(engine)
    except Unavailable as error:
        refusal = _REFUSAL.search(str(error.__cause__))
        if refusal is not None:
            print(f"DATABASE_URL: {refusal[1]}: check user, password and database in it", file=sys.stderr)
            raise SystemExit(2) from None
    except FailedPrecondition as error:
        print(f"{error.message} ({error.reason})", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        engine.dispose()


def wait_for_schema(url: str, seconds: float) -> None:
    """Returns once somebody else has brought the schema to what check_schema() asks for.

    Raises FailedPrecondition: SCHEMA_NEWER at once, SCHEMA_OLDER after ``seconds``; Unavailable
    (DATABASE_UNAVAILABLE) after as long.
    """
    engine = create_engine(url, pool_size=1)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                check_schema(engine)
                return
            except (FailedPrecondition, Unavailable) as error:
                if error.reason == "SCHEMA_NEWER" or time.monotonic() > deadline:
                    raise
            time.sleep(_LOOK_SECONDS)
    finally:
        engine.dispose()


def newer_schema(found: str) -> FailedPrecondition:
    """Returns the error for a database at a revision that this code does not know."""
    newest = revisions()[-1]
    return FailedPrecondition(
        "SCHEMA_NEWER",
        f"DATABASE_URL: the database is at revision {found}, this lorauter knows up to {newest}: a newer one "
        "migrated it. Start that one, or go back with its own "
        f"`lorauter-registry migrate --down --to {newest}` first",
    )


def read_revision(engine: Engine) -> str:
    """Returns the revision that a database is at, empty before its first migration.

    Raises Unavailable (DATABASE_UNAVAILABLE).
    """
    with translated_errors(), engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return ""
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
