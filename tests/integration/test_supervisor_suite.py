"""A suite of embedded parts survives what kills it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import redis
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException

from lorauter_suite.embedded.identity import SAME, Identity, launcher, namespaces_work
from lorauter_suite.embedded.places import reaches
from lorauter_suite.suite import PartFailed, Suite, SuiteOptions, SuiteRunning
from tests.budgets import LONG
from tests.ctrl_c import hear_ctrl_c

PARTS = SuiteOptions(services=())
SCRIPT = """
import sys
from pathlib import Path
from lorauter_suite.suite import Suite, SuiteOptions
with Suite(Path(sys.argv[1]), SuiteOptions(services=tuple(sys.argv[2:]))) as suite:
    try:
        print("up", flush=True)
        suite.wait()
    except KeyboardInterrupt:
        pass  # the signal came between the print and wait()
"""


def eventually(condition, seconds=60.0):
    """Returns the condition's first true value; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not true within {seconds} s: {condition}")


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def belongs(process, data_dir):
    """Returns whether a folder of /proc is that of a child of the suite on the data directory."""
    try:
        words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        place = str((process / "cwd").readlink())
    except OSError:
        return False
    return str(data_dir).encode() in words or place.startswith(str(data_dir))


def family_of(data_dir):
    """Returns the processes that a suite on the data directory started, and itself."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if belongs(path, data_dir)]


def launch(data_dir, *services, python=sys.executable, identity=SAME, environment=None):
    """Starts a suite in a process of its own and waits until it says that it is up."""
    child = subprocess.Popen(
        launcher(identity, signal.SIGKILL, [python, "-c", SCRIPT, str(data_dir), *services]),
        env={**os.environ, **(environment or {})},
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    return child


def published(data_dir):
    return json.loads((data_dir / "suite.json").read_text())


@pytest.fixture
def given_servers(monkeypatch, postgres_url, redis_url, qdrant_url):
    """Names external servers in the environment, as somebody with servers of their own does."""
    given = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "QDRANT_URL": qdrant_url}
    for name, url in given.items():
        monkeypatch.setenv(name, url)
    return given


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    with Suite(tmp_path_factory.mktemp("suite"), PARTS) as running:
        yield running


@pytest.mark.parametrize("part", ["index", "valkey", "postgres"])
def test_a_part_is_back_on_its_address_when_it_was_killed(suite, part):
    answers = {
        "index": lambda: QdrantClient(
            url=suite.addresses.index_http, check_compatibility=False
        ).get_collections(),
        "valkey": lambda: redis.Redis.from_url(suite.addresses.redis_url).ping(),
        "postgres": lambda: psycopg.connect(suite.addresses.database_url).execute("SELECT 1"),
    }[part]
    killed = suite.pids()[part]
    assert works(answers)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: suite.pids().get(part, killed) != killed)
    suite.await_ready(60)
    assert works(answers)


def works(call):
    try:
        return call()
    except (OSError, psycopg.Error, redis.RedisError, ResponseHandlingException):
        return None


def test_a_second_suite_is_refused_when_one_runs_on_the_same_data(suite):
    with pytest.raises(SuiteRunning, match=f"process {os.getpid()}"):
        Suite(suite.data_dir, PARTS).start()
    assert Suite.find(suite.data_dir) == suite.addresses


def test_find_returns_none_when_no_suite_runs(tmp_path):
    assert Suite.find(tmp_path) is None
    (tmp_path / "lock").write_text("")
    (tmp_path / "suite.json").write_text("{}")
    assert Suite.find(tmp_path) is None


def test_nothing_outlives_the_suite_when_it_is_killed_and_it_starts_again_on_its_data(tmp_path):
    child = launch(tmp_path, "worker-matching")
    before = published(tmp_path)
    started = family_of(tmp_path)
    assert len(started) >= len(before["processes"]) + 1  # the worker's prefork child is one more
    with psycopg.connect(before["addresses"]["database_url"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 10)")
    child.kill()
    child.wait()
    eventually(lambda: not any(map(is_alive, started)))
    eventually(lambda: not family_of(tmp_path))
    assert Suite.find(tmp_path) is None
    with Suite(tmp_path, PARTS) as again:
        assert again.addresses.database_url == before["addresses"]["database_url"]
        with psycopg.connect(again.addresses.database_url) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (10,)


def test_everything_stops_in_order_when_the_suite_gets_a_signal(tmp_path):
    log = tmp_path / "logs" / "postgres.log"
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[: 3 if LONG else 2]:
        child = launch(tmp_path)
        child.send_signal(name)
        assert child.wait(60) == 0, name
        assert not family_of(tmp_path), name
        assert not (tmp_path / "suite.json").exists(), name
        assert log.read_text().rstrip().endswith("database system is shut down"), name


def test_nothing_is_left_and_the_next_start_works_when_the_first_was_interrupted(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stderr=subprocess.DEVNULL)
    eventually((tmp_path / "postgres.new" / "PG_VERSION").exists)
    child.terminate()
    assert child.wait(60) != 0
    eventually(lambda: not family_of(tmp_path))
    with Suite(tmp_path, PARTS) as suite:
        assert set(suite.pids()) == {"index", "valkey", "postgres"}


def test_an_external_server_is_used_when_it_is_named(tmp_path, given_servers):
    with Suite(tmp_path, PARTS) as suite:
        assert suite.pids() == {}
        found = suite.addresses
    assert [found.database_url, found.redis_url, found.index_http] == list(given_servers.values())


def test_the_start_fails_with_the_log_when_a_part_cannot_start(tmp_path, monkeypatch, given_servers):
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/missing")
    monkeypatch.setattr("lorauter_suite.supervisor.TRIES", 1)
    with pytest.raises(PartFailed, match=r"(?s)migrations.*PostgreSQL"):
        Suite(tmp_path, PARTS).start()
    assert Suite.find(tmp_path) is None


STRANGER = Identity("user", 65534, 65534)
RENAMED = Identity("namespace", 65534, 65534)
READABLE = [
    python
    for python in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
    if os.geteuid() == 0
    and all(Path(place).exists() and reaches(Path(place).resolve(), STRANGER) for place in (python, __file__))
]
"""Interpreters that an ordinary user may run; none where Python or the checkout lies in root's home."""
ORDINARY = [(RENAMED, sys.executable)] if os.geteuid() == 0 and namespaces_work() else []
ORDINARY += [(STRANGER, python) for python in READABLE[:1]]


@pytest.mark.parametrize(("identity", "python"), ORDINARY)
def test_it_runs_when_the_user_is_not_root(tmp_path_factory, identity, python):
    owner = STRANGER.uid if identity is STRANGER else os.geteuid()
    data_dir = Path("/tmp") / f"lorauter-user-{os.getpid()}"
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, owner, -1)
    try:
        child = launch(
            data_dir, python=python, identity=identity, environment={"PYTHONPATH": os.pathsep.join(sys.path)}
        )
        assert Path(f"/proc/{published(data_dir)['processes']['postgres']}").stat().st_uid == owner
        child.terminate()
        assert child.wait(10) == 0
    finally:
        subprocess.run(["rm", "-rf", str(data_dir)], check=True)
