"""The embedded PostgreSQL on a private folder, as whoever may run it, and after whatever killed it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from lorauter_suite.embedded import places
from lorauter_suite.embedded.identity import Identity, database_identity
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.postgres import EmbeddedPostgres
from lorauter_suite.embedded.process import await_ready, running, start

UNPRIVILEGED = Identity("user", 65534, 65534)
IDENTITIES = [database_identity(), *([UNPRIVILEGED] if os.geteuid() == 0 else [])]


@pytest.fixture
def public_folder():
    """A folder that everybody reaches, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def private_checkout(public_folder, monkeypatch):
    """A folder of mode 0700 that holds PostgreSQL's programs, as a virtual environment in it would."""
    checkout = public_folder / "checkout"
    checkout.mkdir(mode=0o700)
    places.copy_wheel(places.wheel_folder(), checkout)
    monkeypatch.setattr(places, "wheel_folder", lambda: checkout)
    monkeypatch.setattr(places, "SHARED_PROGRAMS", public_folder / "cache")
    monkeypatch.setattr(places, "SHARED_DATA", public_folder / "lib")
    return checkout


@pytest.fixture
def server(tmp_path):
    server = EmbeddedPostgres(tmp_path / "data", free_port())
    server.prepare()
    return server


def rows(server):
    with psycopg.connect(server.url()) as connection:
        return connection.execute("SELECT count(*) FROM kept").fetchone()[0]


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.kind)
def test_it_runs_when_programs_and_data_are_under_a_private_folder(private_checkout, identity):
    server = EmbeddedPostgres(private_checkout / "data", free_port(), identity=identity)
    for _ in range(2):
        with running(server.process()), psycopg.connect(server.url()) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (id int)")
            connection.execute("INSERT INTO kept VALUES (1)")
    with running(server.process()):
        assert rows(server) == 2
    assert private_checkout.stat().st_mode & 0o777 == 0o700


def test_it_refuses_when_the_password_is_wrong(server):
    with running(server.process()):
        wrong = psycopg.conninfo.make_conninfo(server.url(), password="wrong")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(wrong)


@pytest.mark.parametrize("successor", ["nobody", "another process"])
def test_it_starts_with_its_data_when_it_was_killed_and_the_pid_file_is_stale(server, successor):
    spec = server.process()
    process = start(spec, subprocess.DEVNULL)
    await_ready(spec, process)
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 10)")
    process.send_signal(signal.SIGKILL)
    process.wait()
    pid_file = server.cluster / "postmaster.pid"
    if successor == "another process":
        pid_file.write_text(pid_file.read_text().replace(str(process.pid), str(os.getpid()), 1))
    with running(spec):
        assert rows(server) == 10


def test_it_is_made_anew_when_the_first_attempt_was_interrupted(tmp_path):
    server = EmbeddedPostgres(tmp_path / "data", free_port())
    unfinished = tmp_path / "data" / "postgres.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with running(server.process()):
        assert server.is_ready()
    assert not unfinished.exists()
