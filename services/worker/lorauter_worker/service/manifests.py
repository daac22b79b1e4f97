"""Proposes pool manifests, publishes them where a pool's policy lets it, and writes what they need."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, text

from lorauter.errors import FailedPrecondition, LorauterError, Unavailable
from lorauter.lora.composites import CompositeStore
from lorauter.lora.servers import tgi
from lorauter.store import Write, manifest_rows, read, tables, write
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.config import Settings
from lorauter_worker.ports import Wakeups
from lorauter_worker.service.compositions import Compositions, Member

_log = get_logger(__name__)

RETRY_SECONDS = 30.0
"""Pause after composites could not be written."""

_DUE = text(
    "SELECT tenant, id FROM pool WHERE CAST(serving ->> 'manifest_memory_bytes' AS bigint) > 0 "
    "AND NOT EXISTS (SELECT 1 FROM pool_manifest m WHERE m.tenant = pool.tenant AND m.pool = pool.id "
    "AND m.create_time > clock_timestamp() - make_interval(secs => :seconds)) ORDER BY tenant, id"
)
_RECALLED = frozenset({"ADAPTER_DRAINING", "ADAPTER_RETIRED", "ADAPTER_QUARANTINED"})
_NOT_YET = frozenset({"NOTHING_MEASURED", "POOL_MODULES_UNKNOWN", "POOL_NOT_FOUND"})
"""Why a pool has no proposal yet; it gets one when that has changed."""

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifests:
    """Any number of workers do this at a time: what one has done, the others find done."""

    engine: Engine
    composites: CompositeStore
    layouts: manifest_rows.Layouts
    wakeups: Wakeups
    settings: Settings
    clock: Callable[[], float] = time.monotonic
    _not_before: dict[Key, float] = field(default_factory=dict)

    def once(self) -> None:
        """Writes the composites of published manifests, then proposes for the pools whose time it is.

        Raises Unavailable (DATABASE_UNAVAILABLE, ADAPTER_STORE_UNAVAILABLE).
        """
        with read(self.engine) as session:
            waiting = manifest_rows.waiting(session)
            values = {"seconds": self.settings.manifest_seconds}
            pools = [(row.tenant, row.id) for row in session.connection().execute(_DUE, values)]
        for row in waiting:
            if self._is_time("write", row.tenant, row.pool, row.digest, pause=RETRY_SECONDS):
                self._write(row)
        for tenant, pool_id in pools:
            if self._is_time("propose", tenant, pool_id, pause=self.settings.manifest_seconds):
                self._propose(tenant, pool_id)

    def _is_time(self, *key: str, pause: float) -> bool:
        """Whether something is to be tried now; then not again before ``pause`` seconds are over."""
        now = self.clock()
        if now < self._not_before.get(key, now):
            return False
        for old in [old for old, until in self._not_before.items() if until <= now]:
            del self._not_before[old]
        self._not_before[key] = now + pause
        return True

    def _write(self, row: tables.PoolManifest) -> None:
        """Writes a manifest's composites, then lets routers hear of it with a new generation."""
        at = Compositions(self.engine, self.composites, row.tenant)
        named = {"tenant": row.tenant, "pool": row.pool, "manifest": row.digest}
        try:
            for entry in manifest_rows.composites_of(row):
                self._ensure(at, row, entry)
        except Unavailable:
            raise
        except LorauterError as error:
            telemetry.MANIFESTS.labels(result="failed").inc()
            _log.error("worker.manifest.not_written", **named, reason=error.reason, problem=error.message)
            return
        with write(self.engine, row.tenant) as tx:
            fresh = tx.session.get(tables.PoolManifest, (row.tenant, row.pool, row.digest))
            if fresh is None or fresh.publish_time is None or fresh.write_time is not None:
                tx.withdraw()
                return
            fresh.write_time = tx.now
            tx.owe("index", row.pool)
        telemetry.MANIFESTS.labels(result="written").inc()
        _log.info("worker.manifest.written", **named)
        self.wakeups.wake("index")

    def _ensure(self, at: Compositions, row: tables.PoolManifest, entry: Mapping[str, Any]) -> None:
        """Writes one composite; one of a recalled adapter is left out, as routers will not hear of it.

        Raises as Compositions.ensure() does, and FailedPrecondition (MANIFEST_OUTDATED).
        """
        members = [
            Member(each.adapter_id, each.version, each.weight, each.digest)
            for each in manifest_rows.members_of(entry)
        ]
        try:
            composite = at.ensure(row.pool, members, tgi(row.shards))
        except FailedPrecondition as error:
            if error.reason not in _RECALLED:
                raise
            _log.warning("worker.manifest.entry_recalled", entry=entry["name"], problem=error.message)
            return
        if composite.name != entry["name"]:
            raise FailedPrecondition(
                "MANIFEST_OUTDATED",
                f"entry {entry['name']} would be written as {composite.name} today: propose a new manifest",
            )

    def _propose(self, tenant: str, pool_id: str) -> None:
        try:
            found = manifest_rows.draft(self.engine, tenant, pool_id, self.layouts)
        except Unavailable:
            raise
        except LorauterError as error:
            if error.reason not in _NOT_YET:
                telemetry.MANIFESTS.labels(result="failed").inc()
                _log.warning("worker.manifest.not_proposed", pool=pool_id, reason=error.reason)
            return
        with write(self.engine, tenant) as tx:
            pool = tx.session.get(tables.Pool, (tenant, pool_id))
            row = manifest_rows.put(tx, found) if pool is not None else None
            published = pool is not None and row is not None and self._publishes(tx, pool, row)
            if row is not None and published:
                manifest_rows.publish(tx, row)
            else:
                tx.withdraw()
        result = "published" if published else "proposed"
        telemetry.MANIFESTS.labels(result=result).inc()
        _log.info(
            f"worker.manifest.{result}",
            tenant=tenant,
            pool=pool_id,
            manifest=found.proposal.digest,
            expected_share=found.proposal.expected_share,
            published_share=found.published_share,
        )
        if published:
            self.wakeups.wake("index")

    def _publishes(self, tx: Write, pool: tables.Pool, row: tables.PoolManifest) -> bool:
        """Whether the pool lets the worker publish, it gains enough, and the last time is long enough ago."""
        if pool.serving.get("manifest_policy") != "AUTO":
            return False
        if row.expected_share - row.published_share < self.settings.manifest_least_gain:
            return False
        held = manifest_rows.in_force(tx.session, pool.tenant, pool.id)
        pause = timedelta(seconds=self.settings.manifest_pause_seconds)
        if held is not None:
            assert held.publish_time is not None
            if held.digest == row.digest or tx.now < held.publish_time + pause:
                return False
        return manifest_rows.recalled(tx.session, row) is None
