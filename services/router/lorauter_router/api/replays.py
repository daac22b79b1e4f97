"""Translates replays between the router's messages and its values."""

from __future__ import annotations

from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.decision import DEFAULT_MAX_ADAPTERS, DEFAULT_STRATEGY, Decision, RouteOptions
from lorauter_router.api.messages import decided, explanation_of
from lorauter_router.replay import Recorded, Replayed


def recorded_from(query: pb.RecordedQuery) -> Recorded:
    """Returns a recorded query; what is wrong with it is found when it is replayed."""
    return Recorded(
        vector=query.vector,
        terms=query.terms,
        options=RouteOptions(
            strategy=query.strategy or DEFAULT_STRATEGY,
            max_adapters=query.max_adapters or DEFAULT_MAX_ADAPTERS,
            tags=frozenset(query.tags),
            exclude_tasks=frozenset(query.exclude_tasks),
            exclude_adapters=frozenset(query.exclude_adapters),
            explain=bool(query.why_not),
            why_not=tuple(query.why_not),
        ),
    )


def replayed_of(replayed: Replayed) -> pb.ReplayResponse:
    """Returns the response of a replay."""
    return pb.ReplayResponse(responses=[_response(replayed, decision) for decision in replayed.decisions])


def _response(replayed: Replayed, decision: Decision) -> pb.RouteResponse:
    response = decided(decision, replayed.pool, replayed.generation, replayed.profile_digest, replayed.stale)
    response.tenant = replayed.tenant
    if decision.explanation is not None:
        response.explanation.CopyFrom(explanation_of(decision.explanation, ""))
    return response
