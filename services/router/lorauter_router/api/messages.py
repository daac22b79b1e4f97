"""Translates between the router's messages and its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lorauter.access import Caller
from lorauter.errors import InvalidArgument
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.compiled import Arm
from lorauter.routing.decision import (
    DEFAULT_MAX_ADAPTERS,
    DEFAULT_STRATEGY,
    Action,
    Decision,
    Explanation,
    MeasuredSet,
    NextBest,
    Origin,
    RouteOptions,
    WhyNot,
)
from lorauter.routing.model import Adapter, Manifest
from lorauter.routing.text import routed_text
from lorauter_router.domain import ServedSnapshot
from lorauter_router.questions import Answer, Question, SearchKind
from lorauter_router.visibility import SeenPool

SHOWN_CHARACTERS = 2_000
"""Most characters of the routed text in an explanation."""

_ACTIONS = {
    Action.ADAPTERS: pb.ROUTE_ACTION_ADAPTERS,
    Action.BASE: pb.ROUTE_ACTION_BASE,
    Action.REFUSE: pb.ROUTE_ACTION_REFUSE,
}

_SEARCHES = {
    SearchKind.EXACT: pb.SEARCH_KIND_EXACT,
    SearchKind.CANDIDATES: pb.SEARCH_KIND_CANDIDATES,
}


def question_from(request: pb.RouteRequest, who: Caller) -> Question:
    """Returns what a caller asks.

    Raises PermissionDenied (TENANT_NOT_ALLOWED), InvalidArgument (QUERY_AND_MESSAGES) and those of
    routed_text.
    """
    tenant = who.acting_for(request.tenant).tenant
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
        tenant=tenant,
        text=routed_text(source),
        pool=request.pool,
        options=RouteOptions(
            strategy=request.strategy or DEFAULT_STRATEGY,
            max_adapters=request.max_adapters or DEFAULT_MAX_ADAPTERS,
            tags=frozenset(request.tags),
            exclude_tasks=frozenset(request.exclude_tasks),
            exclude_adapters=frozenset(request.exclude_adapters),
            explain=request.explain or bool(request.why_not),
            why_not=tuple(request.why_not),
        ),
        min_generation=request.min_generation,
    )


def response_of(answer: Answer, text: str) -> pb.RouteResponse:
    """Returns the response of an answer to the routed ``text``, which only an explanation shows."""
    response = decided(answer.decision, answer.pool, answer.generation, answer.profile_digest, answer.stale)
    response.decision_id = answer.decision_id
    response.tenant = answer.tenant
    response.encoder_digest = answer.encoder_digest
    response.search = _SEARCHES[answer.search]
    response.timings.CopyFrom(
        pb.RouteTimings(
            encode_ms=answer.timings.encode_ms,
            search_ms=answer.timings.search_ms,
            decide_ms=answer.timings.decide_ms,
            total_ms=answer.timings.total_ms,
            cached=answer.timings.cached,
        )
    )
    if answer.decision.explanation is not None:
        response.explanation.CopyFrom(explanation_of(answer.decision.explanation, text))
        response.explanation.scored_tasks = answer.scored_tasks
    return response


def decided(
    decision: Decision, pool: str, generation: str, profile_digest: str, stale: bool
) -> pb.RouteResponse:
    """Returns what a response says of a decision on all tasks: not its id, timings, explanation, encoder."""
    return pb.RouteResponse(
        adapters=[pb.WeightedAdapter(weight=item.weight, **_arm(item.arm)) for item in decision.adapters],
        best_single=pb.BestSingle(expected_utility=decision.expected_utility, **_arm(decision.best_single)),
        runners_up=[
            pb.BestSingle(expected_utility=utility, **_arm(arm)) for arm, utility in decision.runners_up
        ],
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
        measured=decision.measured,
        action=_ACTIONS[decision.action],
        action_reason=decision.reason,
        generation=generation,
        profile_digest=profile_digest,
        stale=stale,
        strategy=decision.strategy,
        pool=pool,
        search=pb.SEARCH_KIND_EXACT,
    )


def resolved_of(seen: SeenPool, adapter: Adapter) -> pb.ResolveAdapterResponse:
    """Returns an adapter version as the gateway needs it."""
    return pb.ResolveAdapterResponse(
        tenant=seen.tenant,
        pool=seen.pool.pool_id,
        adapter_id=adapter.adapter_id,
        version=adapter.version,
        digest=adapter.digest,
        rank=adapter.rank,
        generation=seen.served.generation,
    )


def pool_snapshot_of(seen: SeenPool, who: Caller, now: float) -> pb.PoolSnapshot:
    """Returns a pool as GetSnapshot shows it to a caller; ``now`` is in Unix seconds.

    Where its servers are is for those of its own tenant, and for who may act for any.
    """
    pool, served = seen.pool, seen.served
    hidden = {} if who.any_tenant or who.tenant == seen.tenant else {"url": "", "adapters_path": ""}
    return pb.PoolSnapshot(
        tenant=seen.tenant,
        generation=served.generation,
        stale=served.stale,
        encoder_digest=served.snapshot.encoder_digest,
        pool=pool.pool_id,
        base_model=pool.base_model,
        base_model_aliases=pool.base_model_aliases,
        backends=[pb.Backend(**{**dataclasses.asdict(backend), **hidden}) for backend in pool.backends],
        task_count=len(pool.tasks),
        adapter_count=served.servable[pool.pool_id].count(now),
        profile_digest=pool.profile.digest,
        serving=pb.ServingPolicy(**dataclasses.asdict(pool.serving)),
        manifests=[_manifest(manifest) for manifest in pool.manifests],
    )


def _manifest(manifest: Manifest) -> pb.Manifest:
    return pb.Manifest(
        digest=manifest.digest,
        entries=[
            pb.ManifestEntry(
                name=entry.name,
                rank=entry.rank,
                members=[pb.ManifestMember(digest=digest, weight=weight) for digest, weight in entry.members],
            )
            for entry in manifest.entries
        ],
    )


def snapshot_of(pools: Sequence[pb.PoolSnapshot], of: ServedSnapshot | None) -> pb.GetSnapshotResponse:
    """Returns what is served: pools, and the generation and encoder ``of`` one tenant's snapshot."""
    return pb.GetSnapshotResponse(
        generation=of.generation if of else "",
        stale=any(pool.stale for pool in pools) or (of is not None and of.stale),
        pools=pools,
        encoder_digest=of.snapshot.encoder_digest if of else "",
    )


def _arm(arm: Arm) -> dict[str, Any]:
    return {"adapter_id": arm.adapter_id, "version": arm.version, "digest": arm.digest, "rank": arm.rank}


def explanation_of(explanation: Explanation, text: str) -> pb.Explanation:
    """Returns the explanation of a decision on the routed ``text``, empty where that is not known."""
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
        origins=[_origin(origin) for origin in explanation.origins],
        next_best=None if explanation.next_best is None else _next_best(explanation.next_best),
        why_not=[_why_not(said) for said in explanation.why_not],
        compositions=[_composition(measured) for measured in explanation.compositions],
    )


def _composition(found: MeasuredSet) -> pb.MeasuredComposition:
    return pb.MeasuredComposition(
        task_id=found.task_id,
        name=found.name,
        members=[pb.WeightedAdapter(weight=item.weight, **_arm(item.arm)) for item in found.members],
        score=found.score,
        count=found.count,
        gain=found.gain,
        gain_error=found.gain_error,
        expected_utility=found.expected_utility,
        served=found.served,
        reason=found.reason,
    )


def _origin(origin: Origin) -> pb.WeightOrigin:
    return pb.WeightOrigin(
        adapter_id=origin.arm.adapter_id,
        version=origin.arm.version,
        weight=origin.weight,
        tasks=[
            pb.TaskShare(task_id=part.task_id, probability=part.probability, share=part.share)
            for part in origin.tasks
        ],
    )


def _next_best(found: NextBest) -> pb.NextBest:
    return pb.NextBest(
        adapter_id=found.arm.adapter_id,
        version=found.arm.version,
        expected_utility=found.expected_utility,
        behind=found.behind,
    )


def _why_not(said: WhyNot) -> pb.WhyNot:
    return pb.WhyNot(
        adapter_id=said.adapter_id,
        fate=pb.AdapterFate.Value(f"ADAPTER_FATE_{said.fate}"),
        message=said.message,
        expected_utility=said.expected_utility,
        task_id=said.task_id,
    )
