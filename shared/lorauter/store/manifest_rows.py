"""Pool manifests in the registry: proposed, published, announced to routers, and forgotten."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine, text
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from lorauter.errors import LorauterError, NotFound
from lorauter.identifiers import COMPOSITE_PREFIX
from lorauter.lora.check import Limits
from lorauter.lora.layout import Layout, read_layout
from lorauter.lora.store import AdapterStore
from lorauter.manifests import Member, Proposal, expected_share, propose
from lorauter.store import tables
from lorauter.store.manifest_inputs import read_inputs
from lorauter.store.session import Write, read

KEPT = 20
"""A pool's newest proposals are kept, and as many of those that were published."""

ANNOUNCED = 2
"""Instances may still have loaded the manifest before the one in force."""

_ANY_SIZE = Limits(max_rank=4096, max_bytes=2**40)
"""What was admitted to the store is read, whatever was allowed then."""

_PRUNE = text(
    "DELETE FROM pool_manifest WHERE tenant = :tenant AND pool = :pool AND digest NOT IN ("
    "(SELECT digest FROM pool_manifest WHERE tenant = :tenant AND pool = :pool AND publish_time IS NULL "
    "ORDER BY create_time DESC, digest DESC LIMIT :kept) UNION ALL "
    "(SELECT digest FROM pool_manifest WHERE tenant = :tenant AND pool = :pool AND publish_time IS NOT NULL "
    "ORDER BY publish_time DESC, digest DESC LIMIT :kept))"
)
_WAITING = text(
    "SELECT tenant, pool, digest FROM (SELECT *, row_number() OVER ("
    "PARTITION BY tenant, pool ORDER BY publish_time DESC, digest DESC) AS place "
    "FROM pool_manifest WHERE publish_time IS NOT NULL) AS published "
    "WHERE place <= :announced AND write_time IS NULL ORDER BY publish_time, tenant, pool"
)


class Layouts:
    """Remembers the layouts of stored adapters, which never change; for several threads."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store
        self._known: dict[str, Layout] = {}
        self._same: dict[Layout, Layout] = {}
        self._lock = threading.Lock()

    def __call__(self, digest: str) -> Layout | str:
        """Returns the layout of an adapter, or why it cannot be read, which is not remembered."""
        if (known := self._known.get(digest)) is not None:
            return known
        try:
            layout = read_layout(self._store.path(digest), _ANY_SIZE)
        except LorauterError as error:
            return f"{error.reason}: {error.message}"
        with self._lock:
            return self._known.setdefault(digest, self._same.setdefault(layout, layout))


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal that is not stored yet; ``published_share`` is what the manifest in force is worth."""

    proposal: Proposal
    shards: int
    published_share: float


def draft(engine: Engine, tenant: str, pool_id: str, layouts: Layouts, memory_bytes: int = 0) -> Draft:
    """Returns what a pool's instances should load in ``memory_bytes``, 0: in what its policy says.

    Adapters' headers are read while no transaction is open. Raises NotFound (POOL_NOT_FOUND) or
    FailedPrecondition (MANIFEST_MEMORY_REQUIRED, POOL_MODULES_UNKNOWN, NOTHING_MEASURED).
    """
    with read(engine) as session:
        pool = session.get(tables.Pool, (tenant, pool_id))
        if pool is None:
            raise NotFound("POOL_NOT_FOUND", f"pool {pool_id!r} does not exist: list what there is")
        inputs = read_inputs(session, pool)
        held = in_force(session, tenant, pool_id)
    candidates, measured = inputs.candidates(layouts)
    memory = memory_bytes or pool.serving.get("manifest_memory_bytes", 0)
    proposal = propose(inputs.target(memory), candidates, measured)
    if held is None:
        return Draft(proposal, inputs.shards, proposal.base_share)
    loaded = [members_of(entry) for entry in held.entries]
    return Draft(proposal, inputs.shards, expected_share(candidates, measured, loaded))


def put(tx: Write, found: Draft) -> tables.PoolManifest:
    """Stores a proposal; one of the same content is proposed again. Old ones go."""
    proposal = found.proposal
    row = tables.PoolManifest(
        tenant=tx.tenant,
        pool=proposal.pool,
        digest=proposal.digest,
        entries=[asdict(entry) for entry in proposal.entries],
        left_out=[asdict(each) for each in proposal.left_out],
        shards=found.shards,
        memory_bytes=proposal.memory_bytes,
        expected_share=proposal.expected_share,
        published_share=found.published_share,
        create_time=tx.now,
    )
    known = tx.session.get(tables.PoolManifest, (tx.tenant, proposal.pool, proposal.digest))
    if known is not None:
        row.publish_time, row.write_time = known.publish_time, known.write_time
    row = tx.session.merge(row)
    tx.session.flush()
    tx.session.connection().execute(_PRUNE, {"tenant": tx.tenant, "pool": proposal.pool, "kept": KEPT})
    return row


def publish(tx: Write, row: tables.PoolManifest) -> None:
    """Puts a manifest in force, and leaves the work of announcing it."""
    row.publish_time = tx.now
    if row.write_time is None and not composites_of(row):
        row.write_time = tx.now
    tx.session.add(row)
    tx.owe("index", row.pool)


def in_force(session: Session, tenant: str, pool_id: str) -> tables.PoolManifest | None:
    """Returns the manifest that was published last, if one was."""
    return session.exec(_published(tenant, pool_id).limit(1)).first()


def announced(session: Session, tenant: str, pool_id: str) -> Sequence[tables.PoolManifest]:
    """Returns the manifests that routers hear of, newest first: their composites are in the store."""
    manifest = tables.PoolManifest
    written = _published(tenant, pool_id).where(col(manifest.write_time).is_not(None))
    return session.exec(written.limit(ANNOUNCED)).all()


def waiting(session: Session) -> Sequence[tables.PoolManifest]:
    """Returns all tenants' manifests to be announced whose composites are not known to be there yet."""
    keys = [tuple(key) for key in session.connection().execute(_WAITING, {"announced": ANNOUNCED})]
    found = (session.get(tables.PoolManifest, key) for key in keys)
    return [row for row in found if row is not None]


def recalled(session: Session, row: tables.PoolManifest) -> tuple[str, int, str] | None:
    """Returns adapter, version and state of the first member that is not active; None if all are."""
    for member in (member for entry in row.entries for member in members_of(entry)):
        version = session.get(tables.AdapterVersion, (row.tenant, member.adapter_id, member.version))
        if version is None or version.state != "ACTIVE":
            return member.adapter_id, member.version, version.state if version else "GONE"
    return None


def members_of(entry: Mapping[str, Any]) -> list[Member]:
    """Returns the members of a stored entry, heaviest first."""
    return [Member(**member) for member in entry["members"]]


def composites_of(row: tables.PoolManifest) -> list[Mapping[str, Any]]:
    """Returns the entries that are composites."""
    return [entry for entry in row.entries if entry["name"].startswith(COMPOSITE_PREFIX)]


def _published(tenant: str, pool_id: str) -> SelectOfScalar[tables.PoolManifest]:
    manifest = tables.PoolManifest
    return (
        select(manifest)
        .where(manifest.tenant == tenant, manifest.pool == pool_id, col(manifest.publish_time).is_not(None))
        .order_by(col(manifest.publish_time).desc(), col(manifest.digest).desc())
    )
