"""Measures how many known queries a refit sends to another adapter, after it is published."""

from __future__ import annotations

from sqlalchemy import Engine

from lorauter.routing.churn import churn
from lorauter.routing.model import Pool
from lorauter.telemetry import get_logger
from lorauter_worker import telemetry
from lorauter_worker.service.projection import Fitted, Projection
from lorauter_worker.service.publishing import record_churn

_log = get_logger(__name__)


class Churning:
    """Remembers what each pool was last like; after a restart nothing, so the first refit has no churn."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, tuple[Fitted, Pool]]] = {}

    def measure(self, engine: Engine, projection: Projection) -> None:
        """Reports the churn of pools whose tasks changed since the projection that was measured last."""
        snapshot = projection.snapshot
        before = self._last.get(snapshot.tenant, {})
        self._last[snapshot.tenant] = {
            pool_id: (fitted, snapshot.pools[pool_id]) for pool_id, fitted in projection.fitted.items()
        }
        for pool_id, (fitted, pool) in self._last[snapshot.tenant].items():
            known = before.get(pool_id)
            if known is None or known[0].keys == fitted.keys:
                continue
            found = churn(known[1], pool, fitted.examples)
            if found is None:
                continue
            telemetry.CHURN.observe(found)
            with engine.begin() as connection:
                record_churn(connection, projection, pool_id, found)
            _log.info(
                "worker.profile.refitted",
                tenant=snapshot.tenant,
                pool=pool_id,
                generation=snapshot.generation,
                churn=round(found, 4),
                **fitted.refit.report,
            )
