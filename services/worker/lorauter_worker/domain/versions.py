"""Which versions of an adapter are routed to, matched, pinned or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from lorauter.routing.model import Adapter
from lorauter.store import serving
from lorauter.store.serving import served_version


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an adapter, as the registry has it."""

    version: int
    digest: str
    state: str
    pins_until: datetime | None = None
    successor: str = ""
    rank: int = 0


REFUSALS = {"RETIRED": "ADAPTER_RETIRED", "QUARANTINED": "ADAPTER_QUARANTINED"}
"""Why pins of a version in this state are refused."""

_KNOWN = frozenset({"ACTIVE", "DRAINING", *REFUSALS})
"""States in which routers know a version; the others never were servable."""


def active_versions(versions: Sequence[Version]) -> list[int]:
    """Returns the versions that may be served, oldest first."""
    return sorted(version.version for version in versions if version.state == "ACTIVE")


def matched_versions(aliases: Mapping[str, int], active: Sequence[int]) -> list[int]:
    """Returns the active versions worth measuring: the one that is served, and the newest."""
    served = served_version(aliases, dict.fromkeys(active, "ACTIVE"))
    return sorted({served, max(active, default=0)} - {0})


def routed_version(
    aliases: Mapping[str, int], versions: Sequence[Version], measured: Mapping[int, int]
) -> int:
    """Returns the version that takes part in decisions, or 0: see lorauter.store.serving."""
    states = {version.version: version.state for version in versions}
    return serving.routed_version(aliases, states, measured)


def servable(
    adapter_id: str, aliases: Mapping[str, int], versions: Sequence[Version], routed: int
) -> list[Adapter]:
    """Returns what routers need to know of an adapter: its versions that are or were servable."""
    return [
        Adapter(
            adapter_id=adapter_id,
            version=version.version,
            digest=version.digest,
            routable=version.version == routed,
            aliases=tuple(sorted(name for name, target in aliases.items() if target == version.version)),
            pins_until=_pins_until(version),
            refusal=REFUSALS.get(version.state, ""),
            successor=version.successor,
            rank=version.rank,
        )
        for version in versions
        if version.state in _KNOWN
    ]


def _pins_until(version: Version) -> float | None:
    if version.state != "DRAINING" or version.pins_until is None:
        return None
    return version.pins_until.timestamp()
