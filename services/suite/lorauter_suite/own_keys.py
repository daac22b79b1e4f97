"""The keys of a suite: made once for a data directory, and readable to its owner only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorauter.access import make_key, read_key
from lorauter_suite.addresses import write_private

API_KEY = "api-key"
"""File of the key that may do everything."""
GATEWAY_KEY = "gateway-key"
"""File of the one that the gateway shows registry and router."""


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """Whole keys."""

    api_key: str
    gateway_key: str


def own_keys(data_dir: Path, given: Mapping[str, str]) -> OwnKeys:
    """Returns the suite's keys: LORAUTER_BOOTSTRAP_KEY and LORAUTER_GATEWAY_KEY, else its own."""
    return OwnKeys(
        given.get("LORAUTER_BOOTSTRAP_KEY") or _kept(data_dir / API_KEY),
        given.get("LORAUTER_GATEWAY_KEY") or _kept(data_dir / GATEWAY_KEY),
    )


def _kept(path: Path) -> str:
    if path.is_file():
        key = path.read_text(encoding="utf-8").strip()
        if read_key(key) is not None:
            return key
    key = make_key()
    write_private(path, key + "\n")
    return key
