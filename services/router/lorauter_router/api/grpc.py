"""The router's gRPC service."""

from __future__ import annotations

import time

from lorauter.errors import InvalidArgument, LorauterError
from lorauter.router.v1 import router_pb2 as pb
from lorauter.router.v1 import router_pb2_grpc
from lorauter.server.grpc import Context
from lorauter_router.api.messages import (
    pool_snapshot_of,
    question_from,
    resolved_of,
    response_of,
    snapshot_of,
)
from lorauter_router.api.replays import recorded_from, replayed_of
from lorauter_router.replay import Replayer
from lorauter_router.service import MAX_BATCH, Question, RouterService


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Translates calls; every answer is computed from one generation."""

    def __init__(self, service: RouterService, replayer: Replayer) -> None:
        self._service = service
        self._replayer = replayer

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:  # noqa: N802
        question = question_from(request)
        answers = await self._service.route([question], context.time_remaining())
        return response_of(answers[0], question.text)

    async def RouteBatch(  # noqa: N802
        self, request: pb.RouteBatchRequest, context: Context
    ) -> pb.RouteBatchResponse:
        questions = _questions(request)
        answers = await self._service.route(questions, context.time_remaining())
        return pb.RouteBatchResponse(
            responses=[response_of(a, q.text) for a, q in zip(answers, questions, strict=True)]
        )

    async def Replay(self, request: pb.ReplayRequest, context: Context) -> pb.ReplayResponse:  # noqa: N802
        replayed = await self._replayer.replay(
            request.pool,
            [recorded_from(query) for query in request.queries],
            request.constants,
            request.encoder_digest,
            context.time_remaining(),
        )
        return replayed_of(replayed)

    async def GetSnapshot(  # noqa: N802
        self, request: pb.GetSnapshotRequest, context: Context
    ) -> pb.GetSnapshotResponse:
        served = self._service.served()
        names = [request.pool] if request.pool else sorted(served.snapshot.snapshot.pools)
        now = time.time()
        pools = [
            pool_snapshot_of(served.snapshot.pool(name), sum(1 for _ in served.snapshot.servable(name, now)))
            for name in names
        ]
        snapshot = served.snapshot.snapshot
        return snapshot_of(snapshot.tenant, snapshot.generation, served.stale, snapshot.encoder_digest, pools)

    async def ResolveAdapter(  # noqa: N802
        self, request: pb.ResolveAdapterRequest, context: Context
    ) -> pb.ResolveAdapterResponse:
        snapshot = self._service.served().snapshot
        pool, adapter = snapshot.resolve(request.pool, request.adapter, time.time())
        return resolved_of(pool.pool_id, adapter, snapshot.generation)

    async def ListServableAdapters(  # noqa: N802
        self, request: pb.ListServableAdaptersRequest, context: Context
    ) -> pb.ListServableAdaptersResponse:
        snapshot = self._service.served().snapshot
        page, token = snapshot.servable_page(request.pool, request.page_size, request.page_token, time.time())
        return pb.ListServableAdaptersResponse(
            adapters=[
                resolved_of(pool_id, adapter, snapshot.generation) for (pool_id, _, _), adapter in page
            ],
            next_page_token=token,
        )


def _questions(request: pb.RouteBatchRequest) -> list[Question]:
    if len(request.requests) > MAX_BATCH:
        raise InvalidArgument(
            "BATCH_TOO_LARGE",
            f"requests has {len(request.requests)}: send at most {MAX_BATCH}",
            field="requests",
        )
    questions: list[Question] = []
    for number, part in enumerate(request.requests):
        try:
            questions.append(question_from(part))
        except LorauterError as error:
            error.metadata["request"] = str(number)
            raise
    return questions
