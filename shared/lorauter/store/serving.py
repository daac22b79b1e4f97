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


def routed_version(aliases: Mapping[str, int], states: Mapping[int, str], measured: Mapping[int, int]) -> int:
    """Returns the version that takes part in decisions, or 0.

    That is the served version, unless another active one is measured on more tasks (``measured``: number
    of tasks by version): a new version takes over when it is as well known as the one before.
    """
    served = served_version(aliases, states)
    active = sorted((version for version, state in states.items() if state == "ACTIVE"), reverse=True)
    order = [served, *active] if served else active
    return max(order, key=lambda version: measured.get(version, 0), default=0)
