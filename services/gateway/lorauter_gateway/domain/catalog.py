"""What instances that load at start-up may hold, by what it adds to the base."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lorauter.router.v1.router_pb2 import Manifest
from lorauter_gateway.domain.plan import Members, members_of


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry of a manifest."""

    name: str
    members: Members
    rank: int


class Catalog:
    """The entries of a pool's manifests, those of the newest first."""

    def __init__(self, manifests: Iterable[Manifest] = ()) -> None:
        manifests = list(manifests)
        self.version = tuple(manifest.digest for manifest in manifests)
        self.entries: dict[str, Listed] = {}
        self._by_members: dict[Members, list[Listed]] = {}
        for manifest in manifests:
            for entry in manifest.entries:
                if entry.name in self.entries:
                    continue
                members = members_of((member.digest, member.weight) for member in entry.members)
                listed = Listed(entry.name, members, entry.rank)
                self.entries[entry.name] = listed
                self._by_members.setdefault(members, []).append(listed)

    def named(self, members: Members) -> list[Listed]:
        """Returns the entries that add exactly this to the base."""
        return self._by_members.get(members, [])
