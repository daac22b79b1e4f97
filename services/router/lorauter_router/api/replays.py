"""Translates replays between the router's messages and its values."""

from __future__ import annotations

from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.decision import DEFAULT_MAX_ADAPTERS, DEFAULT_STRATEGY, RouteOptions
from lorauter_router.api.messages import decided
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
        ),
    )


def replayed_of(replayed: Replayed) -> pb.ReplayResponse:
    """Returns the response of a replay."""
    made_on = (replayed.pool, replayed.generation, replayed.profile_digest, replayed.stale)
    return pb.ReplayResponse(responses=[decided(decision, *made_on) for decision in replayed.decisions])
