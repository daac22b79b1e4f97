"""Translates between the router's messages and its values."""

from __future__ import annotations

from typing import Any

from lorauter.errors import InvalidArgument
from lorauter.identifiers import encode_generation
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.compiled import Arm
from lorauter.routing.decision import (
    DEFAULT_MAX_ADAPTERS,
    DEFAULT_STRATEGY,
    Action,
    Explanation,
    RouteOptions,
)
from lorauter.routing.model import Adapter, Pool
from lorauter.routing.text import routed_text
from lorauter_router.service import Answer, Question

SHOWN_CHARACTERS = 2_000
"""Most characters of the routed text in an explanation."""

_ACTIONS = {
    Action.ADAPTERS: pb.ROUTE_ACTION_ADAPTERS,
    Action.BASE: pb.ROUTE_ACTION_BASE,
    Action.REFUSE: pb.ROUTE_ACTION_REFUSE,
}


def question_from(request: pb.RouteRequest) -> Question:
    """Returns the question of a request.

    Raises InvalidArgument (QUERY_AND_MESSAGES) and those of routed_text.
    """
    if request.query and request.messages:
        raise InvalidArgument(
            "QUERY_AND_MESSAGES", "query and messages are both set: send one of them", field="query"
        )
    source: str | list[dict[str, str]] = (
        [{"role": m.role, "content": m.content} for m in request.messages]
        if request.messages
        else request.query
    )
    return Question(
        text=routed_text(source),
        pool=request.pool,
        options=RouteOptions(
            strategy=request.strategy or DEFAULT_STRATEGY,
            max_adapters=request.max_adapters or DEFAULT_MAX_ADAPTERS,
            tags=frozenset(request.tags),
            exclude_tasks=frozenset(request.exclude_tasks),
            exclude_adapters=frozenset(request.exclude_adapters),
            explain=request.explain,
        ),
        min_generation=request.min_generation,
        tenant=request.tenant,
    )


def response_of(answer: Answer, text: str) -> pb.RouteResponse:
    """Returns the response of an answer to the routed ``text``, which only an explanation shows."""
    decision = answer.decision
    return pb.RouteResponse(
        decision_id=answer.decision_id,
        adapters=[pb.WeightedAdapter(weight=item.weight, **_arm(item.arm)) for item in decision.adapters],
        best_single=pb.BestSingle(expected_utility=decision.expected_utility, **_arm(decision.best_single)),
        tasks=[
            pb.TaskMatch(
                task_id=match.task_id,
                similarity=match.similarity,
                probability=match.probability,
                measured=match.measured,
            )
            for match in decision.tasks
        ],
        typicality=decision.typicality,
        action=_ACTIONS[decision.action],
        action_reason=decision.reason,
        generation=answer.generation,
        profile_digest=answer.profile_digest,
        stale=answer.stale,
        timings=pb.RouteTimings(
            encode_ms=answer.timings.encode_ms,
            decide_ms=answer.timings.decide_ms,
            total_ms=answer.timings.total_ms,
            cached=answer.timings.cached,
        ),
        explanation=None if decision.explanation is None else _explanation(decision.explanation, text),
        strategy=decision.strategy,
        pool=answer.pool,
    )


def resolved_of(pool_id: str, adapter: Adapter, generation: str) -> pb.ResolveAdapterResponse:
    """Returns an adapter version as the gateway needs it."""
    return pb.ResolveAdapterResponse(
        pool=pool_id,
        adapter_id=adapter.adapter_id,
        version=adapter.version,
        digest=adapter.digest,
        generation=generation,
    )


def pool_snapshot_of(pool: Pool, servable_count: int) -> pb.PoolSnapshot:
    """Returns a pool as GetSnapshot shows it."""
    return pb.PoolSnapshot(
        pool=pool.pool_id,
        base_model=pool.base_model,
        base_model_aliases=pool.base_model_aliases,
        backends=[
            pb.Backend(backend_id=b.backend_id, kind=b.kind, url=b.url, draining=b.draining)
            for b in pool.backends
        ],
        task_count=len(pool.tasks),
        adapter_count=servable_count,
        profile_digest=pool.profile.digest,
    )


def snapshot_of(
    generation: int, stale: bool, encoder_digest: str, pools: list[pb.PoolSnapshot]
) -> pb.GetSnapshotResponse:
    """Returns the served snapshot."""
    return pb.GetSnapshotResponse(
        generation=encode_generation(generation), stale=stale, pools=pools, encoder_digest=encoder_digest
    )


def _arm(arm: Arm) -> dict[str, Any]:
    return {"adapter_id": arm.adapter_id, "version": arm.version, "digest": arm.digest}


def _explanation(explanation: Explanation, text: str) -> pb.Explanation:
    return pb.Explanation(
        constants=dict(explanation.constants),
        affinities=[
            pb.AffinityEvidence(
                task_id=task_id,
                adapter_id=affinity.adapter_id,
                score=affinity.score,
                count=affinity.count,
                standard_error=affinity.standard_error,
            )
            for task_id, affinity in explanation.affinities
        ],
        candidates=[
            pb.Candidate(
                adapter_id=candidate.adapter_id,
                expected_utility=candidate.expected_utility,
                reason=candidate.reason,
            )
            for candidate in explanation.candidates
        ],
        routed_text=text[:SHOWN_CHARACTERS],
    )
