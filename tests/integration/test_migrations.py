"""The schema: up, down and up again, and equal to what the tables say."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from lorauter.errors import FailedPrecondition, InvalidArgument, Unavailable
from lorauter.store import create_engine
from lorauter.store.migrate import MIGRATIONS, downgrade, migrate
from lorauter.store.schema import revisions
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


def test_schema_knows_the_revisions_that_alembic_finds() -> None:
    found = ScriptDirectory(str(MIGRATIONS)).walk_revisions()
    assert revisions() == [script.revision for script in found][::-1]


def test_every_revision_goes_back_and_forth_one_by_one(empty_postgres_url: str, engine: Engine) -> None:
    for revision in revisions():
        migrate(empty_postgres_url, revision)
    for revision in [*revisions()[-2::-1], "base"]:
        downgrade(empty_postgres_url, revision)
    assert names(engine) == set()


@pytest.fixture
def newer_url(postgres_url: str) -> str:
    """A database as a version of lorauter leaves it that has a revision more than this one."""
    engine = create_engine(postgres_url, pool_size=1)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    return postgres_url


@pytest.mark.parametrize("module", ["lorauter_registry.main", "lorauter_worker.main"])
def test_process_refuses_to_start_when_a_newer_version_migrated_the_database(
    newer_url: str, module: str, tmp_path: Path
) -> None:
    done = started(module, newer_url, tmp_path)
    assert done.returncode == 2
    assert f"9999, this lorauter knows up to {revisions()[-1]}" in done.stderr
    assert f"migrate --down --to {revisions()[-1]}" in done.stderr
    assert "DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["lorauter_registry.main", "lorauter_worker.main"])
def test_process_refuses_to_start_when_the_database_was_not_migrated(
    empty_postgres_url: str, module: str, tmp_path: Path
) -> None:
    done = started(module, empty_postgres_url, tmp_path)
    assert done.returncode == 2
    assert "empty" in done.stderr
    assert "run `lorauter-registry migrate`" in done.stderr


def test_migrations_leave_a_newer_database_alone(newer_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", newer_url)
    for arguments in (["migrate"], ["migrate", "--down", "--to", revisions()[-1]]):
        with pytest.raises(SystemExit, match="a newer one migrated it"):
            main(arguments)
    with pytest.raises(FailedPrecondition) as caught:
        migrate(newer_url)
    assert caught.value.reason == "SCHEMA_NEWER"


def started(module: str, database_url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "QDRANT_URL": "http://127.0.0.1:1",
        "LORAUTER_ADAPTER_STORE": str(folder),
        "LORAUTER_ACCESS": "open",
    }
    command = [sys.executable, "-m", module]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
