"""What figures were measured on: every report carries it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("lorauter", "torch", "transformers", "sentence-transformers", "qdrant-client", "grpcio")
"""Packages whose versions move the figures."""


def machine() -> dict[str, object]:
    """Returns the number of usable cores and the processor's model."""
    return {"cores": len(os.sched_getaffinity(0)), "model": _processor()}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that move the figures."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
