"""Boots the engine: model, tokenizer, adapter residency, the scheduler's thread, then HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fastapi import FastAPI

from lorauter import tracing
from lorauter.errors import FailedPrecondition
from lorauter.lora.store import AdapterStore
from lorauter.server.run import serve
from lorauter.telemetry import configure_logging, get_logger
from lorauter_engine.api.app import application
from lorauter_engine.api.tgi import Served
from lorauter_engine.config import Settings
from lorauter_engine.model.network import Network, choose_placement
from lorauter_engine.model.plan import Concatenations
from lorauter_engine.model.tokenizer import TextCodec
from lorauter_engine.service.engine import Engine
from lorauter_engine.service.prepare import Preparation
from lorauter_engine.service.residency import Residency
from lorauter_engine.service.scheduler import Bounds, Scheduler

_log = get_logger(__name__)


@contextmanager
def wired(settings: Settings) -> Iterator[FastAPI]:
    """Puts the parts together; the scheduler runs as long as the context lasts."""
    torch.set_num_threads(settings.threads)
    network = Network(settings.model, choose_placement(settings.device, settings.dtype))
    codec = TextCodec(settings.model)
    residency = Residency(
        AdapterStore(settings.adapter_store),
        network.modules,
        network.placement,
        settings.adapter_bytes,
        settings.adapter_count,
        settings.max_rank,
    )
    known = Concatenations(settings.concatenation_bytes)
    scheduler = Scheduler(network, known, _bounds(settings), residency.release)
    engine = Engine(
        network, codec, residency, scheduler, settings.max_concurrent_requests, settings.pass_tokens
    )
    context = min(network.context, settings.max_total_tokens or network.context)
    served = Served(
        engine=engine,
        preparation=Preparation(codec, context, settings.max_adapters_per_request),
        model_id=settings.served_name,
        device="gpu" if network.placement.device.type == "cuda" else "cpu",
        max_requests=settings.max_concurrent_requests,
    )
    scheduler.start()
    try:
        yield application(served, settings.max_body_bytes, settings.backend_key.get_secret_value())
    finally:
        scheduler.stop()


def main() -> None:
    """Reads the environment and serves."""
    # Both must be known before the libraries look: nothing is downloaded, and forks are not warned about.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    settings = Settings.load()
    configure_logging("engine", settings.log_level, settings.log_format)
    tracing.configure("engine")
    _log.info("engine.settings.loaded", **settings.redacted())
    try:
        with wired(settings) as app:
            asyncio.run(serve(settings, app))
    except FailedPrecondition as error:
        _log.error("engine.start.failed", reason=error.reason, message=error.message)
        raise SystemExit(2) from None


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        max_rows=settings.max_rows,
        reserved_rows=min(settings.reserved_rows, settings.max_rows - 1),
        max_batch_tokens=settings.max_batch_tokens,
        prefill_tokens=settings.prefill_tokens,
        pass_tokens=settings.pass_tokens,
        max_waiting_rows=settings.max_waiting_rows,
        max_waiting_items=settings.max_waiting_items,
    )


if __name__ == "__main__":
    main()
