"""How a manifest is handed to TGI's launcher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lorauter.errors import InvalidArgument
from lorauter.routing.model import ADAPTERS_PATH

LAUNCHER_ARGUMENTS = ("--cuda-graphs", "0")
"""A captured graph leaves the adapter out, and TGI captures graphs unless it is told not to."""

_ENVIRONMENT = {"CUDA_GRAPHS": "0"}
"""The same as LAUNCHER_ARGUMENTS."""

_RESERVED = re.compile("[=@,]")
"""What parts the list into entries, and an entry into name, path and revision."""

_TEXT_BYTES = 128 * 1024
"""Linux takes no longer text in a program's environment, or as one argument of it, with its last NUL."""

_LONGEST_NAME = 64


def most_entries(adapters_path: str = ADAPTERS_PATH) -> int:
    """Returns how many entries one ``LORA_ADAPTERS`` holds, whatever their names."""
    entry = 2 * _LONGEST_NAME + len(f"=/,{adapters_path.rstrip('/')}".encode())
    return (_TEXT_BYTES - len("LORA_ADAPTERS=\0")) // entry


def lora_adapters(names: Sequence[str], adapters_path: str = ADAPTERS_PATH) -> str:
    """Returns the value of ``LORA_ADAPTERS``: ``name=path`` for each, separated by commas.

    Raises InvalidArgument (INVALID_ADAPTERS_PATH) for a path that TGI would read as something else, or that
    is not absolute.
    """
    folder = adapters_path.rstrip("/")
    printable = adapters_path.isprintable() and not _RESERVED.search(adapters_path)
    if not adapters_path.startswith("/") or not printable:
        raise InvalidArgument(
            "INVALID_ADAPTERS_PATH",
            f"adapters_path {adapters_path[:200]!r} must be an absolute path without '=', '@', ',' and "
            "control characters, which TGI reads as something else: mount the adapter store elsewhere",
            field="adapters_path",
        )
    return ",".join(f"{name}={folder}/{name}" for name in names)


def environment(names: Sequence[str], adapters_path: str = ADAPTERS_PATH) -> dict[str, str]:
    """Returns environment variables to start TGI's launcher with; raises as lora_adapters() does."""
    return {"LORA_ADAPTERS": lora_adapters(names, adapters_path), **_ENVIRONMENT}


def arguments(names: Sequence[str], adapters_path: str = ADAPTERS_PATH) -> list[str]:
    """Returns the same as flags, where the environment is not used; raises as lora_adapters() does."""
    listed = lora_adapters(names, adapters_path)
    return [*(("--lora-adapters", listed) if listed else ()), *LAUNCHER_ARGUMENTS]


def values(
    pool: str, digest: str, names: Sequence[str], adapters_path: str = ADAPTERS_PATH
) -> dict[str, Any]:
    """Returns all of it for programs such as a Helm chart; raises as lora_adapters() does."""
    return {
        "pool": pool,
        "digest": digest,
        "adapters_path": adapters_path,
        "adapters": list(names),
        "environment": environment(names, adapters_path),
        "arguments": list(LAUNCHER_ARGUMENTS),
    }
