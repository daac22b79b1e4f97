"""`lorauter-registry migrate --wait` lets pods start once somebody else has migrated, and not before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from lorauter.store import create_engine
from lorauter.store.migrate import migrate
from lorauter_registry.main import main


def test_waiting_ends_when_the_database_is_migrated(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_postgres_url)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(main, ["migrate", "--wait", "60"])
        assert not waiting.done()
        migrate(empty_postgres_url)
        waiting.result(60)


def test_waiting_gives_up_and_says_why_when_nobody_migrates(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_postgres_url)
    with pytest.raises(SystemExit, match="the database is empty"):
        main(["migrate", "--wait", "0"])
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(SystemExit, match="migrate: "):
        main(["migrate", "--wait", "0"])


def test_waiting_ends_at_once_when_a_newer_version_migrated(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(postgres_url, pool_size=1)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    with pytest.raises(SystemExit, match="a newer one migrated it"):
        main(["migrate", "--wait", "3600"])
