"""Boots the router: encoder, index, the thread that follows it, then gRPC and health."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lorauter import tracing
from lorauter.encoder import Encoder, load_encoder
from lorauter.errors import FailedPrecondition
from lorauter.index import QdrantIndex, SnapshotIndex
from lorauter.router.v1 import router_pb2, router_pb2_grpc
from lorauter.server.grpc import GrpcServer
from lorauter.server.http import create_app
from lorauter.server.remote_keys import gate_of
from lorauter.server.run import serve
from lorauter.telemetry import configure_logging, get_logger
from lorauter_router import metrics
from lorauter_router.adapters.decisions import NoDecisionLog, RedisDecisionLog
from lorauter_router.adapters.encoding import BatchingEncoder
from lorauter_router.adapters.searching import IndexNarrower
from lorauter_router.api.grpc import RouterServicer
from lorauter_router.config import Settings
from lorauter_router.memory import DecisionMemory
from lorauter_router.replay import Replayer
from lorauter_router.service import RouterService
from lorauter_router.tasks import SnapshotFollower

_log = get_logger(__name__)
_HTTP_BODY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Router:
    """A wired router: its gRPC server, not yet started, and the follower behind it."""

    server: GrpcServer
    follower: SnapshotFollower


@asynccontextmanager
async def wired(settings: Settings, index: SnapshotIndex, *encoders: Encoder) -> AsyncIterator[Router]:
    """Puts the parts together and follows the index for as long as the context lasts."""
    queries = {
        encoder.digest: BatchingEncoder(
            encoder, settings.encode_batch, settings.encode_queue, settings.query_cache
        )
        for encoder in encoders
    }
    follower = SnapshotFollower(
        index, settings.tenants, queries.keys(), settings.poll_seconds, settings.believe_seconds
    )
    narrower = IndexNarrower(index, settings.exact_limit, settings.search_timeout_seconds)
    log = _decision_log(settings)
    memory = DecisionMemory(settings.decision_cache)
    service = RouterService(follower, queries, narrower, log, memory, settings.generation_wait_seconds)
    async with gate_of(settings) as gate:
        server = GrpcServer(gate=gate)
        router_pb2_grpc.add_RouterServiceServicer_to_server(
            RouterServicer(service, Replayer(follower)), server.server
        )
        server.announce(router_pb2.DESCRIPTOR.services_by_name["RouterService"])
        await follower.start()
        try:
            yield Router(server, follower)
        finally:
            await follower.close()
            narrower.close()
            for batching in queries.values():
                await batching.close()
            await log.close()


def _decision_log(settings: Settings) -> NoDecisionLog | RedisDecisionLog:
    if settings.redis_url is None or settings.decision_detail == "off":
        setting = "REDIS_URL is not set" if settings.redis_url is None else "LORAUTER_DECISION_DETAIL is off"
        _log.info("router.decisions.not_recorded", because=setting)
        return NoDecisionLog()
    return RedisDecisionLog(
        str(settings.redis_url),
        settings.decision_detail,
        settings.decision_queue,
        settings.decision_stream,
    )


async def run(settings: Settings) -> None:
    """Serves until a signal."""
    encoders = [
        await asyncio.to_thread(load_encoder, name, settings.encoder_threads, settings.encoder_precision)
        for name in dict.fromkeys((settings.encoder, settings.next_encoder))
        if name
    ]
    index = QdrantIndex(str(settings.qdrant_url), settings.index_timeout_seconds)
    try:
        async with wired(settings, index, *encoders) as router:

            async def readiness() -> str:
                return router.follower.lacking()

            app = create_app("lorauter router", readiness, _HTTP_BODY_BYTES, openapi_url=None)
            await serve(settings, app, router.server)
    finally:
        index.close()


def main() -> None:
    """Reads the environment and serves."""
    settings = Settings.load()
    configure_logging("router", settings.log_level, settings.log_format)
    tracing.configure("router")
    metrics.BY_TASK.most = metrics.BY_ADAPTER.most = settings.metric_names
    _log.info("router.settings.loaded", **settings.redacted())
    try:
        asyncio.run(run(settings))
    except FailedPrecondition as error:
        print(f"{error.message} ({error.reason})", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
