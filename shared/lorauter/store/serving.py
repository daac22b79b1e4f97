"""Which version of an adapter is served: one rule for registry and worker."""

from __future__ import annotations

from collections.abc import Mapping

CHAMPION = "champion"
"""The alias whose version is served."""


def served_version(aliases: Mapping[str, int], states: Mapping[int, str]) -> int:
    """Returns the champion if it is active, else the newest active version, else 0.

    ``states`` are those of all versions, by version.
    """
    active = {version for version, state in states.items() if state == "ACTIVE"}
    champion = aliases.get(CHAMPION, 0)
    return champion if champion in active else max(active, default=0)
