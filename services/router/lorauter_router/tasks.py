"""Follows the index: polls its marker on a thread and swaps in each new generation whole."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from lorauter.errors import LorauterError, Unavailable
from lorauter.identifiers import encode_generation
from lorauter.index import SnapshotIndex
from lorauter.telemetry import get_logger
from lorauter_router import metrics
from lorauter_router.domain import ServedSnapshot
from lorauter_router.ports import QueryEncoder, Served

_log = get_logger(__name__)


class SnapshotFollower:
    """A SnapshotSource. Reading and compiling happen on its thread; a swap replaces one reference.

    A poll that fails, finds the index empty, older than what is served, or written by another encoder
    keeps the last snapshot and marks it stale until a poll succeeds. An index that stays older for
    ``believe_seconds`` is taken for what a restored registry published: a worker repairs any other sooner.
    """

    def __init__(
        self,
        index: SnapshotIndex,
        tenant: str,
        encoders: Mapping[str, QueryEncoder],
        poll_seconds: float,
        believe_seconds: float,
    ) -> None:
        """``encoders`` are by digest; a snapshot is served with its own."""
        self._index = index
        self._tenant = tenant
        self._encoders = encoders
        self._poll_seconds = poll_seconds
        self._believe_seconds = believe_seconds
        self._behind_since: float | None = None
        self._served: Served | None = None
        self._lacking = "nothing is published in the index yet"
        self._closing = threading.Event()
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._follow, name="snapshots", daemon=True)

    async def start(self) -> None:
        """Begins to poll; the first snapshot may be there when this returns, or come later."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.poll)
        self._thread.start()

    async def close(self) -> None:
        """Ends polling after the poll that runs."""
        self._closing.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def lacking(self) -> str:
        """Returns why nothing can be served, or an empty text."""
        return "" if self._served is not None else self._lacking

    def current(self) -> Served:
        """See SnapshotSource."""
        served = self._served
        if served is None:
            raise Unavailable("NO_SNAPSHOT", f"there is no snapshot to route on: {self._lacking}")
        return served

    async def reached(self, generation: int, timeout_seconds: float) -> None:
        """See SnapshotSource."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while (served := self._served) is None or served.snapshot.snapshot.generation < generation:
                    changed = self._changed
                    await changed.wait()
        except TimeoutError:
            return

    def poll(self) -> None:
        """Asks the index once, and swaps if there is a newer snapshot; never raises."""
        try:
            problem = self._advance()
        except LorauterError as error:
            problem = (error.reason, error.message)
        except Exception as error:
            _log.exception("router.snapshot.failed")
            problem = ("UNREADABLE", f"the snapshot cannot be read ({type(error).__name__}); see the log")
        if problem is None or problem[0] != "INDEX_BEHIND":
            self._behind_since = None
        if problem is not None:
            self._mark_stale(*problem)

    def _follow(self) -> None:
        while not self._closing.wait(self._poll_seconds):
            self.poll()

    def _advance(self) -> tuple[str, str] | None:
        """Returns the reason and text of what keeps the served snapshot from being the newest, or None."""
        held = self._served.snapshot.snapshot if self._served is not None else None
        marker = self._index.published(self._tenant)
        if marker is None:
            return "INDEX_EMPTY", "nothing is published in the index yet"
        if held is not None and marker == (held.generation, held.digest):
            self._serve(self._served.snapshot if self._served else ServedSnapshot.of(held), swapped=False)
            return None
        snapshot = self._index.read(self._tenant, held)
        if held is not None and snapshot.generation < held.generation and not self._is_believed():
            return "INDEX_BEHIND", (
                f"the index went back to generation {encode_generation(snapshot.generation, self._tenant)}: if no worker "
                f"repairs it within {self._believe_seconds:g} s it counts as restored, and is served"
            )
        if snapshot.encoder_digest not in self._encoders:
            return "ENCODER_MISMATCH", (
                f"generation {encode_generation(snapshot.generation, self._tenant)} was embedded by encoder "
                f"{snapshot.encoder_digest[:19]}, this router has {self._names()}: set LORAUTER_ENCODER and "
                "LORAUTER_ENCODER_PRECISION as on the worker, or LORAUTER_NEXT_ENCODER to its encoder"
            )
        self._serve(ServedSnapshot.of(snapshot), swapped=True)
        return None

    def _names(self) -> str:
        return " and ".join(digest[:19] for digest in self._encoders)

    def _is_believed(self) -> bool:
        """Returns whether the index has been behind for so long that it must be meant."""
        if self._behind_since is None:
            self._behind_since = time.monotonic()
        return time.monotonic() - self._behind_since >= self._believe_seconds

    def _serve(self, snapshot: ServedSnapshot, swapped: bool) -> None:
        before = self._served
        self._served = Served(snapshot, self._encoders[snapshot.snapshot.encoder_digest], stale=False)
        metrics.STALE.set(0)
        if before is not None and before.stale:
            _log.info("router.snapshot.refreshed", generation=snapshot.generation)
        if swapped:
            metrics.SWAPS.inc()
            metrics.expect(snapshot.snapshot.pools.values())
            metrics.GENERATION.set(snapshot.snapshot.generation)
            _log.info(
                "router.snapshot.swapped",
                generation=snapshot.generation,
                encoder=snapshot.snapshot.encoder_digest,
                pools=len(snapshot.pools),
            )
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._announce)

    def _mark_stale(self, reason: str, message: str) -> None:
        metrics.POLL_FAILURES.labels(reason).inc()
        served = self._served
        if served is None:
            if message != self._lacking:
                _log.warning("router.snapshot.missing", reason=reason, problem=message)
            self._lacking = message
        elif not served.stale:
            self._served = replace(served, stale=True)
            metrics.STALE.set(1)
            _log.warning("router.snapshot.stale", reason=reason, problem=message)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
