"""The router's gRPC service."""

from __future__ import annotations

import time

from lorauter.access import Caller, caller
from lorauter.errors import InvalidArgument, LorauterError, PermissionDenied
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
from lorauter_router.domain import ServedSnapshot, resolve, servable_page
from lorauter_router.questions import Question
from lorauter_router.replay import Replayer
from lorauter_router.service import MAX_BATCH, RouterService
from lorauter_router.visibility import View


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Translates calls; every answer is computed from one generation."""

    def __init__(self, service: RouterService, replayer: Replayer) -> None:
        self._service = service
        self._replayer = replayer

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:  # noqa: N802
        question = question_from(request, caller())
        answers = await self._service.route([question], context.time_remaining())
        return response_of(answers[0], question.text)

    async def RouteBatch(  # noqa: N802
        self, request: pb.RouteBatchRequest, context: Context
    ) -> pb.RouteBatchResponse:
        questions = _questions(request, caller())
        answers = await self._service.route(questions, context.time_remaining())
        return pb.RouteBatchResponse(
            responses=[response_of(a, q.text) for a, q in zip(answers, questions, strict=True)]
        )

    async def Replay(self, request: pb.ReplayRequest, context: Context) -> pb.ReplayResponse:  # noqa: N802
        replayed = await self._replayer.replay(
            caller().tenant,
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
        who, snapshots = caller(), self._service.snapshots()
        of: ServedSnapshot | None
        if request.all_tenants:
            _check_all_tenants(request, who)
            seen, of = snapshots.pools(), None
        elif request.pool:
            seen = [snapshots.view(who.tenant).pool(request.pool)]
            of = seen[0].served
        else:
            view = snapshots.view(who.tenant)
            seen, of = view.pools(), view.own
        now = time.time()
        return snapshot_of([pool_snapshot_of(each, who, now) for each in seen], of)

    async def ResolveAdapter(  # noqa: N802
        self, request: pb.ResolveAdapterRequest, context: Context
    ) -> pb.ResolveAdapterResponse:
        seen = self._view(request.tenant).pool(request.pool)
        return resolved_of(seen, resolve(seen.pool, request.adapter, time.time()))

    async def ListServableAdapters(  # noqa: N802
        self, request: pb.ListServableAdaptersRequest, context: Context
    ) -> pb.ListServableAdaptersResponse:
        view = self._view(request.tenant)
        seen = {
            each.pool.pool_id: each for each in ([view.pool(request.pool)] if request.pool else view.pools())
        }
        page, token = servable_page(
            [each.pool for each in seen.values()], request.page_size, request.page_token, time.time()
        )
        return pb.ListServableAdaptersResponse(
            adapters=[resolved_of(seen[pool_id], adapter) for (pool_id, _, _), adapter in page],
            next_page_token=token,
        )

    def _view(self, tenant: str) -> View:
        return self._service.snapshots().view(caller().acting_for(tenant).tenant)


def _check_all_tenants(request: pb.GetSnapshotRequest, who: Caller) -> None:
    if not who.any_tenant:
        raise PermissionDenied(
            "TENANT_NOT_ALLOWED",
            "the key may not act for all tenants: leave all_tenants unset",
            field="all_tenants",
        )
    if request.pool:
        raise InvalidArgument(
            "POOL_AND_ALL_TENANTS", "pool and all_tenants are both set: send one of them", field="pool"
        )


def _questions(request: pb.RouteBatchRequest, who: Caller) -> list[Question]:
    if len(request.requests) > MAX_BATCH:
        raise InvalidArgument(
            "BATCH_TOO_LARGE",
            f"requests has {len(request.requests)}: send at most {MAX_BATCH}",
            field="requests",
        )
    questions: list[Question] = []
    for number, part in enumerate(request.requests):
        try:
            questions.append(question_from(part, who))
        except LorauterError as error:
            error.metadata["request"] = str(number)
            raise
    return questions
