"""Puts the worker together: what the main process runs, and what each child holds."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import warnings
from functools import partial
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_ready
from celery.worker import state

from lorauter import tracing
from lorauter.encoder import load_encoder, preload
from lorauter.index import QdrantIndex
from lorauter.lora.composites import CompositeStore
from lorauter.lora.store import AdapterStore
from lorauter.store import create_engine
from lorauter.store.manifest_rows import Layouts
from lorauter.store.schema import refuse_other_schema
from lorauter.telemetry import configure_logging, get_logger
from lorauter_worker import telemetry
from lorauter_worker.adapters.celery_wakeups import CeleryWakeups
from lorauter_worker.adapters.decision_stream import RedisDecisionStream
from lorauter_worker.adapters.evaluators import make_evaluator
from lorauter_worker.adapters.wanted_compositions import RedisWantedCompositions
from lorauter_worker.api.http import HttpThread
from lorauter_worker.config import Settings
from lorauter_worker.domain.pacing import Pace
from lorauter_worker.service.background import Background
from lorauter_worker.service.composing import Composer
from lorauter_worker.service.decisions import DecisionKeeper
from lorauter_worker.service.indexing import Indexer
from lorauter_worker.service.manifests import Manifests
from lorauter_worker.service.matching import Matcher
from lorauter_worker.service.parts import Means
from lorauter_worker.service.projection import Projector
from lorauter_worker.service.recalls import Recalls
from lorauter_worker.service.sweep import Sweep
from lorauter_worker.service.watchdog import Watchdog
from lorauter_worker.tasks.app import create_app
from lorauter_worker.tasks.drain import Child, register_tasks

_log = get_logger(__name__)

_TALKATIVE = (
    *("celery.worker.strategy", "celery.worker.request", "celery.app.trace"),
    *("sentence_transformers", "uvicorn.error"),
)
"""Loggers that would say something for every wake-up."""


def run(settings: Settings) -> int:
    """Runs Celery's main process until a signal; returns the exit status.

    Threads start only when the children are forked. Once tasks are consumed one line of JSON,
    ``{"ready": true, "http_port": …}``, goes to stdout.
    """
    _configure_logs(settings)
    _log.info("worker.starting", **settings.redacted())
    refuse_other_schema(str(settings.database_url))
    if "index" in settings.queues and settings.adapter_store is not None:
        AdapterStore(settings.adapter_store).prepare()
    app = create_app(str(settings.redis_url), settings.drain_seconds)
    register_tasks(app, lambda: build_child(settings, app))
    if "index" in settings.queues:
        # once, before the fork: a child that is started again need not
        preload(settings.encoder, settings.encoder_precision)
    telemetry.export()
    sweep, composing = build_sweep(settings, app), build_composing(settings)
    manifesting = build_manifesting(settings, app)
    http = _listen(settings, sweep)

    @setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def keep_logging(**_: Any) -> None:
        """Having a receiver keeps Celery from configuring logging."""

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def on_ready(**_: Any) -> None:
        http.start()
        sweep.start()
        if composing is not None:
            composing.start()
        if manifesting is not None:
            manifesting.start()
        print(json.dumps({"ready": True, "http_port": http.port}), flush=True)

    worker = app.Worker(
        pool_cls="prefork",
        concurrency=settings.concurrency,
        queues=list(settings.queues),
        hostname=f"{'-'.join(settings.queues)}-{os.getpid()}@{socket.gethostname()}",
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    sweep.stop()
    if composing is not None:
        composing.stop()
    if manifesting is not None:
        manifesting.stop()
    http.stop()
    return int(worker.exitcode or 0)


def _configure_logs(settings: Settings) -> None:
    configure_logging("worker", settings.log_level, settings.log_format)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns root of pickled messages, of which this worker accepts none.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")


def _listen(settings: Settings, sweep: Sweep) -> HttpThread:
    try:
        return HttpThread(settings, sweep.lacking)
    except OSError as error:
        where = f"{settings.host}:{settings.http_port}"
        print(f"LORAUTER_HTTP_PORT: cannot listen on {where}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def build_sweep(settings: Settings, app: Celery) -> Sweep:
    """Returns the main process's sweep with connections of its own."""
    wakeups = CeleryWakeups(app, str(settings.redis_url))
    index = QdrantIndex(str(settings.qdrant_url), settings.index_timeout_seconds)
    engine = create_engine(str(settings.database_url), pool_size=1)
    decisions = DecisionKeeper(engine, RedisDecisionStream(str(settings.redis_url)), settings.decision_days)
    recalls = None
    if "index" in settings.queues:
        recalls = Recalls(engine, RedisWantedCompositions(str(settings.redis_url)))
    watchdog = Watchdog(lambda: not state.active_requests and wakeups.is_there(), give_up=_die)
    return Sweep(engine, index, wakeups, wakeups.waiting, settings, decisions, recalls, watchdog)


def _die() -> None:
    """Ends main process and children at once: its consumer, which would drain them, hangs."""
    os.kill(os.getpid(), signal.SIGKILL)


def build_composing(settings: Settings) -> Background | None:
    """Returns what writes wanted compositions; None in a worker that is not to.

    Workers of `index` do, where they have the store: they also write what manifests need, so no others need
    write to it, and the memory of a large composite is not taken from measuring.
    """
    if "index" not in settings.queues:
        return None
    if settings.adapter_store is None:
        _log.warning("worker.composing.off", problem="LORAUTER_ADAPTER_STORE is not set")
        return None
    engine = create_engine(str(settings.database_url), pool_size=1)
    store = CompositeStore(AdapterStore(settings.adapter_store))
    composer = Composer(engine, store, RedisWantedCompositions(str(settings.redis_url)))
    return Background("composing", composer.once, settings.sweep_seconds)


def build_manifesting(settings: Settings, app: Celery) -> Background | None:
    """Returns what proposes pool manifests and writes what they need; None in a worker that is not to."""
    if "index" not in settings.queues or settings.adapter_store is None:
        return None
    store = AdapterStore(settings.adapter_store)
    manifests = Manifests(
        engine=create_engine(str(settings.database_url), pool_size=1),
        composites=CompositeStore(store),
        layouts=Layouts(store),
        wakeups=CeleryWakeups(app, str(settings.redis_url)),
        settings=settings,
    )
    return Background("manifests", manifests.once, settings.sweep_seconds)


def build_child(settings: Settings, app: Celery) -> Child:
    """Connects a child process, and loads the encoder if it indexes."""
    tracing.configure("worker")
    engine = create_engine(str(settings.database_url), pool_size=3)
    wakeups = CeleryWakeups(app, str(settings.redis_url))
    owner = f"{socket.gethostname()}:{os.getpid()}"
    indexer = matcher = None
    if "index" in settings.queues:
        encoder = load_encoder(settings.encoder, settings.encoder_threads, settings.encoder_precision)
        index = QdrantIndex(str(settings.qdrant_url), settings.index_timeout_seconds)
        projector = Projector(engine, encoder, settings.representation_examples)
        indexer = Indexer(engine, index, projector, wakeups, settings, owner)
    if "matching" in settings.queues:
        make = partial(make_evaluator, access=settings.backend_access())
        means = Means(engine, make, wakeups, settings, Pace(settings.matching_rate))
        matcher = Matcher(means, owner)
    return Child(indexer, matcher)
