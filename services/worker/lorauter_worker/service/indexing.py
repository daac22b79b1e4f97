"""Brings the index to the newest generation, and repairs it where it differs from the registry."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sqlalchemy import Engine, text

from lorauter import tracing
from lorauter.errors import Unavailable
from lorauter.failpoints import reach
from lorauter.index import PublishReport, SnapshotIndex
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.config import Settings
from lorauter_worker.ports import Wakeups
from lorauter_worker.service import outbox
from lorauter_worker.service.automatching import start_matchings
from lorauter_worker.service.churning import Churning
from lorauter_worker.service.embeddings import OutOfTime
from lorauter_worker.service.lease import LeaseLost, held
from lorauter_worker.service.projection import Projection, Projector
from lorauter_worker.service.publishing import record_published
from lorauter_worker.service.traced import recording, working

_log = get_logger(__name__)

_TENANTS = text("SELECT tenant FROM generation")
_AWAY = frozenset({"DATABASE_UNAVAILABLE", "INDEX_UNAVAILABLE"})
"""What keeps every tenant from its repair."""
_GENERATION = text("SELECT value FROM generation WHERE tenant = :tenant")


@dataclass(frozen=True, slots=True)
class Indexer:
    """Does the outbox's index work. One at a time in a process."""

    engine: Engine
    index: SnapshotIndex
    projector: Projector
    wakeups: Wakeups
    settings: Settings
    owner: str
    churning: Churning = field(default_factory=Churning)

    def drain(self) -> None:
        """Does all due index work, for at most a slice; what is left is done at the next wake-up."""
        deadline = time.monotonic() + self.settings.slice_seconds
        while time.monotonic() < deadline:
            claim = outbox.claim(self.engine, "index", self.owner, self.settings.lease_seconds)
            if claim is None:
                return
            published = self._handle(claim, deadline)
            # a generation that waits comes first; the next churn then counts this one's too
            if published is not None and not outbox.is_owed(self.engine, claim.tenant):
                self.churning.measure(self.engine, published)
        self.wakeups.wake("index")

    def reconcile(self) -> int:
        """Compares every tenant's index with its registry, and publishes again where they differ.

        Returns the number of repairs and rebuilds. Tenants with index work left are not looked at: that work
        is what brings the index up to date. Drops what former encoders left, too.
        """
        repaired = 0
        with self.engine.connect() as connection:
            tenants = connection.execute(_TENANTS).scalars().all()
        for tenant in tenants:
            repaired += self._repaired(tenant)
        if dropped := self.index.drop_former(self.settings.former_encoder_seconds):
            _log.info("worker.index.former_encoder_dropped", collections=dropped)
        return repaired

    def _handle(self, claim: outbox.Claim, deadline: float) -> Projection | None:
        """Returns the projection that was published, if one was."""
        began = time.monotonic()
        seconds = self.settings.lease_seconds, self.settings.heartbeat_seconds
        with held(self.engine, claim, *seconds) as lease, working("index", claim):
            try:
                projection = self.projector.project(claim.tenant, deadline)
                lease.check()
                self._publish(claim, projection)
                telemetry.PROJECTION_SECONDS.observe(time.monotonic() - began)
                return projection
            except OutOfTime:
                outbox.carry_on(self.engine, claim)
            except LeaseLost:
                _log.warning("worker.index.lease_lost", tenant=claim.tenant)
            except Exception as error:
                outbox.fail(self.engine, claim, error)
        return None

    def _publish(self, claim: outbox.Claim, projection: Projection | None) -> None:
        if projection is None:
            with self.engine.begin() as connection:
                outbox.finish(connection, claim)
            return
        snapshot = projection.snapshot
        with tracing.span("publish", attributes={"lorauter.generation": snapshot.generation}):
            report = self._move_index(projection, thorough=False)
        reach("publish")
        with recording(), self.engine.begin() as connection:
            record_published(connection, projection)
        if start_matchings(self.engine, snapshot.tenant):
            self.wakeups.wake("matching")
        with self.engine.begin() as connection:  # last, so that dying before it does all of this again
            outbox.fulfil(connection, claim, snapshot.generation)
            reach("acknowledge")
        reach("acknowledged")
        telemetry.PROJECTIONS.labels(result="published" if report.moved else "overtaken").inc()
        _log.info(
            "worker.snapshot.published",
            tenant=snapshot.tenant,
            generation=snapshot.generation,
            written=report.written,
            deleted=report.deleted,
            moved=report.moved,
        )

    def _move_index(self, projection: Projection, thorough: bool) -> PublishReport:
        """Publishes; what a registry that no longer exists published, as before a restore, is cleared."""
        snapshot = projection.snapshot
        report = self.index.publish(snapshot, projection.examples, thorough=thorough)
        if report.moved:
            return report
        marker = self.index.published(snapshot.tenant)
        with self.engine.connect() as connection:  # read after the marker: a living registry is ahead of it
            newest = connection.execute(_GENERATION, {"tenant": snapshot.tenant}).scalar_one()
        if marker is None or marker[0] <= newest:
            return report
        _log.warning("worker.index.cleared", tenant=snapshot.tenant, marker=marker[0], generation=newest)
        self.index.clear(snapshot.tenant)
        return self.index.publish(snapshot, projection.examples, thorough=True)

    def _repaired(self, tenant: str) -> int:
        """Like _reconcile_tenant(), but what is wrong with one tenant keeps no other from its repair."""
        try:
            return self._reconcile_tenant(tenant)
        except Unavailable as error:
            if error.reason in _AWAY:
                raise
            _log.warning("worker.reconcile.failed", tenant=tenant, reason=error.reason)
        except Exception as error:
            _log.error("worker.reconcile.failed", tenant=tenant, exc_info=error)
        return 0

    def _reconcile_tenant(self, tenant: str) -> int:
        try:
            projection = self.projector.project(tenant, time.monotonic() + self.settings.slice_seconds)
        except OutOfTime:
            return 0
        if projection is None or outbox.is_owed(self.engine, tenant):
            return 0
        check = self.index.verify(projection.snapshot, projection.examples)
        if check.is_sound and not check.surplus:
            return 0
        is_rebuild = not check.is_sound and self._is_rebuild(projection)
        report = self._move_index(projection, thorough=True)
        if not report.moved or check.is_sound:
            return 0
        with self.engine.begin() as connection:
            record_published(connection, projection)
        (telemetry.REBUILDS if is_rebuild else telemetry.REPAIRS).inc()
        event = "worker.index.rebuilt" if is_rebuild else "worker.index.repaired"
        _log.warning(event, tenant=tenant, written=report.written)
        return 1

    def _is_rebuild(self, projection: Projection) -> bool:
        """Returns whether the index is empty or another encoder's; anything else that it lacks was lost."""
        tenant = projection.snapshot.tenant
        if self.index.published(tenant) is None:
            return True
        try:
            return self.index.read(tenant).encoder_digest != projection.snapshot.encoder_digest
        except Unavailable:  # what is published is not complete
            return False


def marker_is_behind(engine: Engine, index: SnapshotIndex) -> bool:
    """Returns whether any tenant's marker is not where its last publishing left it; cheap.

    Raises Unavailable where the index does not answer.
    """
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT tenant, published FROM generation WHERE published IS NOT NULL")
        ).all()
    markers = index.markers()
    for tenant, published in rows:
        marker = markers.get(tenant)
        if marker is None or marker[0] < published:
            return True
    return False
