"""Searches the index for candidates, on threads beside the routes, for at most the time that it may take."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from lorauter.errors import LorauterError
from lorauter.index import Search, SnapshotIndex
from lorauter.routing.candidates import probe_of, restricted, rows_of
from lorauter.routing.compiled import CompiledPool
from lorauter.routing.decision import RouteOptions
from lorauter.routing.strategies.strategy import Query
from lorauter.telemetry import get_logger
from lorauter_router import metrics
from lorauter_router.domain import ServedSnapshot

_log = get_logger(__name__)

_THREADS = 8
_PAUSE_SECONDS = 1.0
"""How long an index that failed, or was too slow, is not asked again: each query would wait in vain."""


class IndexNarrower:
    """A Narrower. Belongs to one event loop."""

    def __init__(self, index: SnapshotIndex, exact_limit: int, timeout_seconds: float) -> None:
        self._index = index
        self._exact_limit = exact_limit
        self._timeout = timeout_seconds
        self._paused_until = 0.0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="search")

    def applies(self, pool: CompiledPool) -> bool:
        """See Narrower."""
        return len(pool.tasks) > self._exact_limit

    async def candidates(
        self, snapshot: ServedSnapshot, pool: CompiledPool, query: Query, options: RouteOptions
    ) -> CompiledPool | None:
        """See Narrower."""
        if time.monotonic() < self._paused_until:
            metrics.SEARCH_FAILURES.labels("PAUSED").inc()
            return None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                return await loop.run_in_executor(self._threads, self._search, snapshot, pool, query, options)
        except TimeoutError:
            self._pause("SEARCH_TIMEOUT")
        except LorauterError as error:
            self._pause(error.reason)
        return None

    def close(self) -> None:
        """Ends the threads after the searches that run."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _search(
        self, snapshot: ServedSnapshot, pool: CompiledPool, query: Query, options: RouteOptions
    ) -> CompiledPool | None:
        words = query.words()
        found = self._index.search(
            Search(
                tenant=snapshot.snapshot.tenant,
                encoder_digest=snapshot.snapshot.encoder_digest,
                pool_id=pool.pool_id,
                probe=probe_of(pool, query.vector, words),
                tags=options.tags,
                exclude_tasks=options.exclude_tasks,
            )
        )
        if found.root != snapshot.snapshot.digest:
            metrics.SEARCH_FAILURES.labels("INDEX_MOVED_ON").inc()
            return None
        return restricted(pool, rows_of(pool, found.tasks), words)

    def _pause(self, reason: str) -> None:
        metrics.SEARCH_FAILURES.labels(reason).inc()
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        _log.warning("router.search.failed", reason=reason, then="all tasks are scored")
