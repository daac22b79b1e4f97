"""Stores the routers' decisions in PostgreSQL, and forgets them after some days."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, select, tuple_, union
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DataError, IntegrityError

from lorauter.access import PUBLIC_TENANT
from lorauter.decisions import RecordedDecision
from lorauter.errors import InvalidArgument, Unavailable
from lorauter.identifiers import decode_generation
from lorauter.store import tables
from lorauter.store.session import translated_errors
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.ports import DecisionStream

_log = get_logger(__name__)

BATCH = 500
"""Most decisions of one transaction."""

FORGOTTEN_AT_ONCE = 5_000
"""Most decisions of one DELETE."""

MOST_BATCHES = 10
"""Batches of a tenant in one go, so that other work of the caller does not wait."""

_TABLE = tables.Decision.metadata.tables["decision"]
_KEY = _TABLE.primary_key.columns
_INSERT = insert(_TABLE).on_conflict_do_nothing()
_TENANTS = union(
    *(select(tables.Generation.metadata.tables[name].c.tenant) for name in ("generation", "api_key"))
)
"""Who has written something, and who may only route in public pools."""


def _now() -> datetime:
    return datetime.now(UTC)


class DecisionKeeper:
    """Empties the streams of all tenants that the database knows, and the table of what is too old."""

    def __init__(
        self, engine: Engine, stream: DecisionStream, days: float, clock: Callable[[], datetime] = _now
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._kept = timedelta(days=days)
        self._clock = clock
        self._is_away = False

    def once(self) -> None:
        """Stores what the streams hold and removes what is old; without Redis only that.

        Raises Unavailable (DATABASE_UNAVAILABLE); what was taken is then given out again later.
        """
        with translated_errors(), self._engine.connect() as connection:
            tenants = list(connection.execute(_TENANTS).scalars())
        for tenant in tenants:
            self._forget(tenant)
        try:
            for tenant in tenants:
                self._store(tenant)
        except Unavailable as error:
            if error.reason != "REDIS_UNAVAILABLE":
                raise
            if not self._is_away:
                _log.warning("worker.decisions.redis_away", problem=error.message)
            self._is_away = True
        else:
            self._is_away = False

    def _store(self, tenant: str) -> None:
        for _ in range(MOST_BATCHES):
            entries = self._stream.take(tenant, BATCH)
            rows = []
            for identity, fields in entries:
                try:
                    rows.append(_row(tenant, RecordedDecision.read(fields)))
                except InvalidArgument as error:
                    _drop(tenant, identity, error.message)
            self._insert(tenant, rows)
            self._stream.finish(tenant, [identity for identity, _ in entries])
            if len(entries) < BATCH:
                return

    def _insert(self, tenant: str, rows: Sequence[dict[str, Any]]) -> None:
        """Inserts rows at once, or, where the database refuses one of them, one by one without it."""
        if not rows:
            return
        try:
            with translated_errors(), self._engine.begin() as connection:
                connection.execute(_INSERT, rows)
        except (DataError, IntegrityError) as error:
            if len(rows) == 1:
                _drop(tenant, rows[0]["id"], type(error).__name__)
                return
            for row in rows:
                self._insert(tenant, [row])
        else:
            telemetry.DECISIONS.labels(result="stored").inc(len(rows))

    def _forget(self, tenant: str) -> None:
        old = (
            select(*_KEY)
            .where(_TABLE.c.tenant == tenant, _TABLE.c.time < self._clock() - self._kept)
            .order_by(_TABLE.c.time)
            .limit(FORGOTTEN_AT_ONCE)
        )
        with translated_errors(), self._engine.begin() as connection:
            connection.execute(delete(_TABLE).where(tuple_(*_KEY).in_(old)))


def _row(tenant: str, decision: RecordedDecision) -> dict[str, Any]:
    """Raises InvalidArgument (BAD_DECISION_ENTRY, FOREIGN_GENERATION)."""
    if decision.pool_tenant not in (tenant, PUBLIC_TENANT):
        raise InvalidArgument("BAD_DECISION_ENTRY", "it was made in another tenant's pool")
    plain = decision.model_dump(exclude={"time_ms", "generation"})
    features = {name: getattr(decision, name) for name in ("vector", "terms", "text")}
    return {
        "tenant": tenant,
        **plain,
        **features,
        "time": datetime.fromtimestamp(decision.time_ms / 1000, UTC),
        "generation": decode_generation(decision.generation, decision.pool_tenant, "generation"),
    }


def _drop(tenant: str, identity: str, problem: str) -> None:
    telemetry.DECISIONS.labels(result="dropped").inc()
    _log.warning("worker.decisions.dropped", tenant=tenant, entry=identity, problem=problem)
