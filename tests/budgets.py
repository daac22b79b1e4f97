"""How much of what takes long `make test` tries: `LONG=1 make test` tries all of it."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("LONG"))


def tries(whole: int, few: int) -> int:
    """Returns ``whole`` with LONG=1, else ``few``."""
    return whole if LONG else few
