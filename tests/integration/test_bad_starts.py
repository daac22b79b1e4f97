"""What only shows when a service reaches for it stops the start as well: by name, without a traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from lorauter.access import make_key
from lorauter.store.schema import refuse_other_schema

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def environment(postgres_url: str, redis_url: str, qdrant_url: str, tmp_path: Path) -> dict[str, str]:
    """What every service starts with on the servers of these tests."""
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "TMPDIR": str(tmp_path),
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "QDRANT_URL": qdrant_url,
        "LORAUTER_ADAPTER_STORE": str(tmp_path / "adapters"),
        "LORAUTER_BOOTSTRAP_KEY": make_key(),
        "LORAUTER_REGISTRY_ADDRESS": "127.0.0.1:1",
        "LORAUTER_LOG_LEVEL": "error",
    }


def stopped(service: str, environment: dict[str, str]) -> str:
    """Starts a service that cannot; returns what it said."""
    command = [sys.executable, "-m", f"lorauter_{service}.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "ready" not in done.stdout
    return done.stderr


@pytest.mark.parametrize(
    ("pattern", "replacement", "told"),
    [
        (r"://([^:]+):[^@]+@", r"://\1:another@", "password authentication failed"),
        (r"/([^/]+)$", r"/of_nobody", 'database "of_nobody" does not exist'),
    ],
)
def test_database_that_knows_no_such_login_or_name_stops_the_start(
    postgres_url: str, capsys: pytest.CaptureFixture[str], pattern: str, replacement: str, told: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        refuse_other_schema(re.sub(pattern, replacement, postgres_url))
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.startswith(f"DATABASE_URL: {told}")
    assert "check user, password and database" in said
    assert "another" not in said


def test_database_that_is_away_stops_nothing() -> None:
    refuse_other_schema("postgresql://lorauter:secret@127.0.0.1:1/lorauter")


def test_registry_without_any_key_asks_for_the_first(environment: dict[str, str], postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM api_key").fetchone() == (0,)
    said = stopped("registry", {**environment, "LORAUTER_BOOTSTRAP_KEY": ""})
    assert "LORAUTER_BOOTSTRAP_KEY is not set" in said
    assert "LORAUTER_ACCESS=open" in said


@pytest.mark.parametrize("service", ["registry", "worker"])
def test_store_that_cannot_be_written_is_named(
    environment: dict[str, str], tmp_path: Path, service: str
) -> None:
    (tmp_path / "file").touch()
    said = stopped(service, {**environment, "LORAUTER_ADAPTER_STORE": str(tmp_path / "file" / "adapters")})
    assert "LORAUTER_ADAPTER_STORE: " in said
    assert "cannot be written" in said


def test_address_of_another_machine_is_named(environment: dict[str, str]) -> None:
    said = stopped("registry", {**environment, "LORAUTER_HOST": "192.0.2.1"})
    assert "LORAUTER_GRPC_PORT: cannot listen on 192.0.2.1:" in said
    assert "LORAUTER_HOST" in said


def test_encoder_that_is_not_there_is_named(environment: dict[str, str]) -> None:
    said = stopped("router", {**environment, "LORAUTER_ENCODER": "/no/such/encoder"})
    assert "LORAUTER_ENCODER '/no/such/encoder'" in said
    assert "hf download" in said


def test_model_that_is_not_there_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    said = stopped("engine", {**environment, "LORAUTER_MODEL": str(tmp_path)})
    assert "LORAUTER_MODEL: " in said
    assert "holds no config.json" in said
