"""Which manifests, and what of them, routers hear of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lorauter.routing.model import Manifest, ManifestEntry
from lorauter.store import tables
from lorauter.store.manifest_rows import members_of
from lorauter_worker.service.state import AdapterState

_SERVED = frozenset({"ACTIVE", "DRAINING"})
"""States of versions that instances may still be asked for."""


def manifests_of(
    rows: Sequence[tables.PoolManifest], adapters: Sequence[AdapterState]
) -> tuple[Manifest, ...]:
    """Returns the manifests of a pool without the entries that have a recalled adapter; the order stays."""
    served = {
        (adapter.row.id, version.version)
        for adapter in adapters
        for version in adapter.versions
        if version.state in _SERVED
    }
    return tuple(Manifest(row.digest, _entries(row, served)) for row in rows)


def _entries(row: tables.PoolManifest, served: Collection[tuple[str, int]]) -> tuple[ManifestEntry, ...]:
    """By name: their order by gain changes with the traffic, and no generation tells of that."""
    found = []
    for entry in sorted(row.entries, key=lambda entry: str(entry["name"])):
        members = members_of(entry)
        if all((each.adapter_id, each.version) in served for each in members):
            weighted = tuple((each.digest, each.weight) for each in members)
            found.append(ManifestEntry(entry["name"], weighted, entry["rank"]))
    return tuple(found)
