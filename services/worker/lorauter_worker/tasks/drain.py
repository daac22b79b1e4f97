"""The Celery tasks: thin shells that do what the outbox owes."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from lorauter import tracing
from lorauter.errors import Unavailable
from lorauter.telemetry import get_logger
from lorauter_worker.service.indexing import Indexer
from lorauter_worker.service.matching import Matcher
from lorauter_worker.tasks.app import DRAIN_INDEX, DRAIN_MATCHING, RECONCILE

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Child:
    """The work that a child process can do; None for queues that it does not consume."""

    indexer: Indexer | None
    matcher: Matcher | None


_PR_SET_PDEATHSIG = 1


def register_tasks(app: Celery, build_child: Callable[[], Child]) -> None:
    """Registers the tasks. ``build_child`` runs once in every child process, when it starts."""
    child = cache(build_child)

    @worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def on_child_start(**_: Any) -> None:
        _die_with_parent()
        child()

    @worker_process_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
    def on_child_end(**_: Any) -> None:
        tracing.close()

    @app.task(name=DRAIN_INDEX)  # type: ignore[untyped-decorator]
    def drain_index() -> None:
        """Brings the index to the newest generation."""
        indexer = child().indexer
        if indexer is not None:
            indexer.drain()

    @app.task(name=RECONCILE)  # type: ignore[untyped-decorator]
    def reconcile() -> None:
        """Repairs the index where it differs from the registry."""
        indexer = child().indexer
        if indexer is not None:
            try:
                indexer.reconcile()
            except Unavailable as error:  # the next one will see
                _log.warning("worker.reconcile.failed", reason=error.reason)

    @app.task(name=DRAIN_MATCHING)  # type: ignore[untyped-decorator]
    def drain_matching() -> None:
        """Carries on with a matching."""
        matcher = child().matcher
        if matcher is not None:
            matcher.drain()


def _die_with_parent() -> None:
    """Lets no child go on working when the main process is killed, where the kernel can see to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
