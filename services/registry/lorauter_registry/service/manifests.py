"""Pool manifests: proposed from what was measured, published by callers, announced by the worker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlmodel import Session, col, select

from lorauter.errors import FailedPrecondition
from lorauter.identifiers import COMPOSITE_PREFIX
from lorauter.manifests.render import LAUNCHER_ARGUMENTS, lora_adapters
from lorauter.routing.model import ADAPTERS_PATH
from lorauter.store import Write, tables
from lorauter.store.manifest_rows import Layouts, draft, in_force, publish, put, recalled
from lorauter_registry.domain.manifests import (
    ListPoolManifests,
    PoolManifest,
    PoolManifestList,
    ProposePoolManifest,
    PublishPoolManifest,
)
from lorauter_registry.domain.resources import AdapterVersion
from lorauter_registry.service.base import Context, Part, among, missing
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import version_of


class Manifests(Part):
    """Pool manifests."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._layouts = Layouts(context.store)

    def propose_pool_manifest(self, request: ProposePoolManifest) -> PoolManifest:
        """Proposes what a pool's TGI instances load; changes nothing that is served.

        Raises NotFound (POOL_NOT_FOUND) or FailedPrecondition (MANIFEST_MEMORY_REQUIRED,
        POOL_MODULES_UNKNOWN, NOTHING_MEASURED).
        """
        if answer := self.answered(request, PoolManifest):
            return answer
        engine = self.context.engine
        found = draft(engine, self.tenant, request.pool, self._layouts, request.memory_bytes)

        def change(tx: Write) -> PoolManifest:
            self.existing(tx.session, tables.Pool, "pool", request.pool)
            row = put(tx, found)
            tx.withdraw()
            return self._shown(tx.session, request.pool, [row])[0]

        return self.changing(request, PoolManifest, change)

    def publish_pool_manifest(self, request: PublishPoolManifest) -> PoolManifest:
        """Puts a manifest in force; the one that is in force stays as it is.

        Raises NotFound (POOL_NOT_FOUND, MANIFEST_NOT_FOUND) or FailedPrecondition
        (MANIFEST_ADAPTER_NOT_ACTIVE).
        """

        def change(tx: Write) -> PoolManifest:
            pool = self.existing(tx.session, tables.Pool, "pool", request.pool)
            row = tx.session.get(tables.PoolManifest, (self.tenant, pool.id, request.digest))
            if row is None:
                raise missing("manifest", request.digest)
            if (gone := recalled(tx.session, row)) is not None:
                adapter, version, state = gone
                raise FailedPrecondition(
                    "MANIFEST_ADAPTER_NOT_ACTIVE",
                    f"version {version} of adapter {adapter!r} is {state}: propose a new manifest",
                    adapter=adapter,
                    version=str(version),
                )
            held = in_force(tx.session, self.tenant, pool.id)
            if held is not None and held.digest == row.digest:
                tx.withdraw()
            else:
                publish(tx, row)
                tx.session.flush()
            return self._shown(tx.session, pool.id, [row])[0]

        return self.changing(request, PoolManifest, change)

    def list_pool_manifests(self, request: ListPoolManifests) -> PoolManifestList:
        """Lists a pool's manifests, newest first; raises NotFound (POOL_NOT_FOUND)."""
        manifest = tables.PoolManifest
        statement = select(manifest).where(manifest.tenant == self.tenant, manifest.pool == request.pool)
        with self.reading() as session:
            self.existing(session, tables.Pool, "pool", request.pool)
            manifests, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(manifest.create_time), col(manifest.digest)],
                lambda rows: self._shown(session, request.pool, rows),
                newest_first=True,
            )
        return PoolManifestList(manifests=manifests, next_page_token=token)

    def _shown(
        self, session: Session, pool_id: str, rows: Sequence[tables.PoolManifest]
    ) -> list[PoolManifest]:
        """Returns the manifests of a pool's rows."""
        held = in_force(session, self.tenant, pool_id)
        path = self._adapters_path(session, pool_id)
        versions = self._singles(session, rows)
        return [
            PoolManifest(
                **row.model_dump(exclude={"tenant", "shards"}),
                adapters=tuple(
                    versions[entry["members"][0]["adapter_id"], entry["members"][0]["version"]]
                    for entry in row.entries
                    if not entry["name"].startswith(COMPOSITE_PREFIX)
                ),
                published=held is not None and held.digest == row.digest,
                size_bytes=sum(entry["size_bytes"] for entry in row.entries),
                lora_adapters=lora_adapters([entry["name"] for entry in row.entries], path),
                launcher_arguments=LAUNCHER_ARGUMENTS,
            )
            for row in rows
        ]

    def _singles(
        self, session: Session, rows: Sequence[tables.PoolManifest]
    ) -> dict[tuple[str, int], AdapterVersion]:
        """Returns the versions of the adapters that are members of entries."""
        ids = {m["adapter_id"] for row in rows for entry in row.entries for m in entry["members"]}
        version, now = tables.AdapterVersion, datetime.now(UTC)
        statement = select(version).where(version.tenant == self.tenant, among(version.adapter_id, ids))
        return {
            (found.adapter_id, found.version): version_of(found, now) for found in session.exec(statement)
        }

    def _adapters_path(self, session: Session, pool_id: str) -> str:
        """Returns where the pool's TGI instances find the adapter store: the first's by id."""
        backend = tables.Backend
        statement = (
            select(backend)
            .where(backend.tenant == self.tenant, backend.pool == pool_id)
            .where(backend.kind == "TGI", backend.state == "ACTIVE")
            .order_by(col(backend.id))
        )
        row = session.exec(statement.limit(1)).first()
        return (row.limits.get("adapters_path") if row else "") or ADAPTERS_PATH
