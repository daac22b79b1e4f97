"""Follows the index: polls its markers on a thread and swaps in each new generation of a tenant whole."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from lorauter import tracing
from lorauter.access import PUBLIC_TENANT
from lorauter.errors import LorauterError
from lorauter.identifiers import encode_generation
from lorauter.index import SnapshotIndex
from lorauter.routing.model import Snapshot
from lorauter.telemetry import get_logger
from lorauter_router import metrics
from lorauter_router.domain import ServedSnapshot
from lorauter_router.visibility import NOTHING_PUBLISHED, Snapshots

_log = get_logger(__name__)

Marker = tuple[int, str]
"""A published generation and its root's digest."""

Problem = tuple[str, str]
"""What keeps a snapshot from being the newest: a reason and a text."""


_Value = TypeVar("_Value")


class SnapshotFollower:
    """A SnapshotSource. Reading and compiling happen on its thread; a swap replaces one reference.

    A poll that fails, or finds a tenant's index gone, older than what is served, or written by another
    encoder, keeps that tenant's last snapshot and marks it stale until a poll succeeds. What stays older for
    ``believe_seconds`` is taken for what a restored registry published: a worker repairs any other sooner.
    A tenant that stays gone for so long, while others are there and none comes back, is let go of.
    """

    def __init__(
        self,
        index: SnapshotIndex,
        tenants: Sequence[str],
        encoders: Collection[str],
        poll_seconds: float,
        believe_seconds: float,
    ) -> None:
        """``tenants`` are followed beside what is public; empty: all. ``encoders`` are digests."""
        followed = frozenset({*tenants, PUBLIC_TENANT}) if tenants else frozenset()
        self._index = index
        self._followed = sorted(followed)
        self._encoders = encoders
        self._poll_seconds = poll_seconds
        self._believe_seconds = believe_seconds
        self._behind_since: dict[str, float] = {}
        self._gone_since: dict[str, float] = {}
        self._now = Snapshots(followed=followed)
        self._is_read = False
        self._closing = threading.Event()
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._follow, name="snapshots", daemon=True)

    async def start(self) -> None:
        """Begins to poll; the first snapshots may be there when this returns, or come later."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.poll)
        self._thread.start()

    async def close(self) -> None:
        """Ends polling after the poll that runs."""
        self._closing.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def lacking(self) -> str:
        """Returns why nobody can be served, or an empty text.

        An index without any tenant is no reason; one that was never read, or of which nothing can be, is.
        """
        now = self._now
        if not self._is_read:
            return now.problem
        return "" if now.served else next(iter(now.lacking.values()), "")

    def current(self) -> Snapshots:
        """See SnapshotSource."""
        return self._now

    async def reached(self, generations: Mapping[str, int], timeout_seconds: float) -> None:
        """See SnapshotSource."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._has(generations):
                    await self._changed.wait()
        except TimeoutError:
            return

    def poll(self) -> None:
        """Looks once. Never raises: what is wrong makes what is served stale."""
        try:
            markers = self._index.markers(self._followed)
        except Exception as error:
            reason, message = _known(error)
            metrics.POLL_FAILURES.labels(reason).inc()
            self._now = replace(self._now, problem=message)
            self._gone_since.clear()
            for tenant in self._now.served:
                self._mark_stale(tenant, reason, message)
            return
        for tenant, marker in markers.items():
            if self._closing.is_set():
                return
            self._look(tenant, marker)
        self._look_for_gone(markers)
        if self._now.problem != NOTHING_PUBLISHED:
            self._now = replace(self._now, problem=NOTHING_PUBLISHED)
        self._is_read = True

    def _has(self, generations: Mapping[str, int]) -> bool:
        served = self._now.served
        return all(
            tenant in served and served[tenant].snapshot.generation >= generation
            for tenant, generation in generations.items()
        )

    def _follow(self) -> None:
        while not self._closing.wait(self._poll_seconds):
            self.poll()

    def _look(self, tenant: str, marker: Marker) -> None:
        try:
            problem = self._advance(tenant, marker)
        except Exception as error:
            problem = _known(error)
        if problem is None or problem[0] != "INDEX_BEHIND":
            self._behind_since.pop(tenant, None)
        if problem is not None:
            metrics.POLL_FAILURES.labels(problem[0]).inc()
            self._fail(tenant, *problem)

    def _advance(self, tenant: str, marker: Marker) -> Problem | None:
        """Returns what keeps the tenant's served snapshot from being the newest, or None."""
        served = self._now.served.get(tenant)
        held = served.snapshot if served is not None else None
        if served is not None and marker == (served.snapshot.generation, served.snapshot.digest):
            if served.stale:
                self._serve(replace(served, stale=False))
                _log.info("router.snapshot.refreshed", tenant=tenant, generation=served.generation)
            return None
        with self._traced(tenant):
            return self._take(tenant, held)

    def _traced(self, tenant: str) -> tracing.Span:
        """Returns the span of a swap, in the trace of the change that was published, if it is in one."""
        place = self._index.carrier(tenant) if tracing.is_on() else tracing.NOWHERE
        return tracing.span("swap", "consumer", parent=place) if place else tracing.OFF

    def _take(self, tenant: str, held: Snapshot | None) -> Problem | None:
        with tracing.span("read", "client", {"db.system.name": "qdrant"}):
            snapshot = self._index.read(tenant, held)
        generation = encode_generation(snapshot.generation, tenant)
        if held is not None and snapshot.generation < held.generation and not self._is_believed(tenant):
            return "INDEX_BEHIND", (
                f"the index went back to generation {generation}: if no worker repairs it within "
                f"{self._believe_seconds:g} s it counts as restored, and is served"
            )
        if snapshot.encoder_digest not in self._encoders:
            return "ENCODER_MISMATCH", (
                f"generation {generation} was embedded by encoder {snapshot.encoder_digest[:19]}, this "
                f"router has {self._names()}: set LORAUTER_ENCODER and LORAUTER_ENCODER_PRECISION as on the "
                "worker, or LORAUTER_NEXT_ENCODER to its encoder"
            )
        with tracing.span("compile"):
            served = ServedSnapshot.of(snapshot)
        self._swap(served)
        return None

    def _names(self) -> str:
        return " and ".join(digest[:19] for digest in self._encoders)

    def _is_believed(self, tenant: str) -> bool:
        """Returns whether the index has been behind for so long that it must be meant."""
        now = time.monotonic()
        return now - self._behind_since.setdefault(tenant, now) >= self._believe_seconds

    def _look_for_gone(self, markers: Mapping[str, Marker]) -> None:
        """Lets go of tenants that nobody publishes any more, but not while an index is being filled anew."""
        if not markers or not markers.keys().isdisjoint(self._gone_since):
            self._gone_since.clear()
        now = time.monotonic()
        for tenant in self._now.served.keys() - markers.keys():
            metrics.POLL_FAILURES.labels("INDEX_EMPTY").inc()
            if markers and now - self._gone_since.setdefault(tenant, now) >= self._believe_seconds:
                self._let_go(tenant)
            else:
                self._mark_stale(tenant, "INDEX_EMPTY", "nothing is published for the tenant any more")
        for tenant in self._now.lacking.keys() - markers.keys():
            self._now = replace(self._now, lacking=_without(self._now.lacking, tenant))

    def _let_go(self, tenant: str) -> None:
        del self._gone_since[tenant]
        self._now = replace(self._now, served=_without(self._now.served, tenant))
        self._index.forget(tenant)
        metrics.following(self._now.served.values())
        _log.warning("router.snapshot.dropped", tenant=tenant)

    def _swap(self, served: ServedSnapshot) -> None:
        self._serve(served)
        metrics.SWAPS.inc()
        metrics.expect(served.tenant, served.snapshot.pools.values())
        _log.info(
            "router.snapshot.swapped",
            tenant=served.tenant,
            generation=served.generation,
            encoder=served.snapshot.encoder_digest,
            pools=len(served.pools),
        )
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._announce)

    def _serve(self, served: ServedSnapshot) -> None:
        now = self._now
        self._now = replace(
            now,
            served={**now.served, served.tenant: served},
            lacking=_without(now.lacking, served.tenant),
        )
        metrics.following(self._now.served.values())

    def _fail(self, tenant: str, reason: str, message: str) -> None:
        """Takes note of why a tenant's newest snapshot is not served."""
        if tenant in self._now.served:
            self._mark_stale(tenant, reason, message)
        elif self._now.lacking.get(tenant) != message:
            self._now = replace(self._now, lacking={**self._now.lacking, tenant: message})
            _log.warning("router.snapshot.missing", tenant=tenant, reason=reason, problem=message)

    def _mark_stale(self, tenant: str, reason: str, message: str) -> None:
        served = self._now.served[tenant]
        if not served.stale:
            self._serve(replace(served, stale=True))
            _log.warning("router.snapshot.stale", tenant=tenant, reason=reason, problem=message)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _known(error: Exception) -> Problem:
    if isinstance(error, LorauterError):
        return error.reason, error.message
    _log.error("router.poll.failed", exc_info=error)
    return "UNREADABLE", f"the snapshot cannot be read ({type(error).__name__}); see the log"


def _without(values: Mapping[str, _Value], name: str) -> Mapping[str, _Value]:
    return {key: value for key, value in values.items() if key != name}
