"""What the files of a pool are, in one number each and in one for all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def file_digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file under `root` by relative path, without the manifest itself."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "pool.json")
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def pool_digest(files: Mapping[str, str]) -> str:
    """The pool's digest: SHA-256 over its sorted `digest  path` lines, as `sha256sum` prints them."""
    return hashlib.sha256("".join(f"{files[path]}  {path}\n" for path in sorted(files)).encode()).hexdigest()
