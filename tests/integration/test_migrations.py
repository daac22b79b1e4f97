"""The schema: up, down and up again, and equal to what the tables say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect

from lorauter.errors import InvalidArgument, Unavailable
from lorauter.store import create_engine
from lorauter.store.migrate import downgrade, migrate
from lorauter.store.tables import Generation
from lorauter_registry.main import main


@pytest.fixture
def engine(empty_postgres_url: str):
    engine = create_engine(empty_postgres_url, pool_size=1)
    yield engine
    engine.dispose()


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        return compare_metadata(context, Generation.metadata)


def names(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def test_schema_equals_the_tables_when_migrated(empty_postgres_url: str, engine: Engine) -> None:
    migrate(empty_postgres_url)
    assert differences(engine) == []


def test_every_table_carries_the_tenant_when_migrated(empty_postgres_url: str, engine: Engine) -> None:
    migrate(empty_postgres_url)
    inspector = inspect(engine)
    for table in names(engine):
        columns = {column["name"]: column for column in inspector.get_columns(table)}
        assert columns["tenant"]["nullable"] is False, table


def test_nothing_is_left_when_downgraded_to_base(empty_postgres_url: str, engine: Engine) -> None:
    migrate(empty_postgres_url)
    assert names(engine)
    downgrade(empty_postgres_url, "base")
    assert names(engine) == set()
    migrate(empty_postgres_url)
    assert differences(engine) == []


def test_schema_is_made_once_when_several_migrate_together(empty_postgres_url: str, engine: Engine) -> None:
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(migrate, empty_postgres_url) for _ in range(4)]:
            done.result()
    assert differences(engine) == []


def test_command_migrates_up_and_down(
    empty_postgres_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_postgres_url)
    main(["migrate"])
    assert differences(engine) == []
    main(["migrate", "--down", "--to", "base"])
    assert names(engine) == set()
    with pytest.raises(SystemExit, match="revision"):
        main(["migrate", "--to", "no-such-revision"])


def test_error_says_what_to_do_when_revision_or_database_is_missing(empty_postgres_url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        migrate(empty_postgres_url, "no-such-revision")
    assert caught.value.reason == "UNKNOWN_REVISION"
    with pytest.raises(Unavailable) as away:
        migrate("postgresql://nobody@127.0.0.1:1/nothing")
    assert away.value.reason == "DATABASE_UNAVAILABLE"
