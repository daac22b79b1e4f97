"""Shows in metrics how far everything is: generations, tasks, adapters, operations."""

from __future__ import annotations

import time
from collections import Counter

from sqlalchemy import Connection, Engine, text

from lorauter.server.bounded import Bounded
from lorauter_worker import telemetry

EVERY_SECONDS = 5.0
"""How often what is counted row by row is counted anew; generations are read at every look."""

MOST_TENANTS = 100
"""Tenants that metrics tell apart; the generations of all others are summed up."""

_GENERATIONS = text("SELECT tenant, value, COALESCE(published, 0) FROM generation")
_TASKS = text("SELECT state, count(*) AS held FROM task GROUP BY state")
_ADAPTERS = text("SELECT state, count(*) AS held FROM adapter_version GROUP BY state")
_OPERATIONS = text(
    "SELECT count(*), COALESCE(sum(done), 0), COALESCE(sum(greatest(total - done, 0)), 0) "
    "FROM operation WHERE end_time IS NULL"
)

TASK_STATES = ("REGISTERED", "EMBEDDED", "MATCHING", "MATCHED")
ADAPTER_STATES = ("REGISTERED", "VERIFIED", "ACTIVE", "DRAINING", "RETIRED", "QUARANTINED")


class Gauges:
    """Belongs to one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tenant_label = Bounded(MOST_TENANTS)
        self._next = 0.0

    def once(self) -> None:
        """Looks once. Raises what the database raises."""
        with self._engine.connect() as connection:
            accepted: Counter[str] = Counter()
            published: Counter[str] = Counter()
            for tenant, newest, seen in connection.execute(_GENERATIONS).all():
                accepted[self._tenant_label(tenant)] += newest
                published[self._tenant_label(tenant)] += seen
            for label in accepted:
                telemetry.ACCEPTED.labels(tenant=label).set(accepted[label])
                telemetry.PUBLISHED.labels(tenant=label).set(published[label])
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + EVERY_SECONDS
                self._count(connection)

    def _count(self, connection: Connection) -> None:
        tasks = {row.state: row.held for row in connection.execute(_TASKS)}
        for state in TASK_STATES:
            telemetry.TASKS.labels(state=state).set(tasks.get(state, 0))
        adapters = {row.state: row.held for row in connection.execute(_ADAPTERS)}
        for state in ADAPTER_STATES:
            telemetry.ADAPTERS.labels(state=state).set(adapters.get(state, 0))
        under_way, done, left = connection.execute(_OPERATIONS).one()
        telemetry.OPERATIONS.set(under_way)
        telemetry.MATCHING_DONE.set(float(done))
        telemetry.MATCHING_LEFT.set(float(left))
