"""What the router answers over gRPC, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest

from lorauter.identifiers import encode_generation
from lorauter.index import MemoryIndex
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.model import Affinity

QUERY = "what is 8 plus 5"


async def test_query_goes_to_its_tasks_best_adapter_when_routed(router, lab) -> None:
    response = await router.route(explain=True)
    assert response.best_single.adapter_id == "abacus"
    assert response.adapters[0].digest == lab.digest_of("abacus", 7)
    assert sum(adapter.weight for adapter in response.adapters) == pytest.approx(1)
    assert response.tasks[0].task_id == "sum"
    assert response.action == pb.ROUTE_ACTION_ADAPTERS
    assert (response.generation, response.pool, response.strategy) == (lab.token(7), "p", "default")
    assert response.profile_digest.startswith("sha256:")
    assert response.explanation.routed_text == QUERY
    assert len(response.decision_id) == 32
    assert not response.stale


async def test_untypical_query_gets_the_all_round_adapter_when_the_policy_says_so(lab) -> None:
    snapshot = lab.snapshot(7)
    everywhere = Affinity("atlas", 1, 0.8, 20, 0.1)
    tasks = tuple(
        replace(task, affinities=(*task.affinities, everywhere)) for task in snapshot.pools["p"].tasks
    )
    profile = snapshot.pools["p"].profile
    # of twelve known queries an unknown one has 1 / 13
    profile = replace(profile, constants={**profile.constants, "untypical_below": 0.1})
    pool = replace(snapshot.pools["p"], tasks=tasks, profile=profile, untypical_policy="ALL_ROUND")
    index = MemoryIndex()
    index.publish(replace(snapshot, pools={"p": pool}), [])
    async with lab.router_on(index) as router:
        usual = await router.route()
        assert usual.best_single.adapter_id == "abacus"
        unlike = await router.route(query="zebras graze on the moors of granite")
        assert (unlike.best_single.adapter_id, unlike.action) == ("atlas", pb.ROUTE_ACTION_ADAPTERS)
        assert "best over all tasks" in unlike.action_reason
        assert unlike.typicality < 0.1 < usual.typicality


async def test_explanation_says_where_weights_come_from_and_why_not_others(router) -> None:
    response = await router.route(why_not=["abacus", "critic", "nobody"])
    explanation = response.explanation
    assert [(one.adapter_id, one.weight) for one in explanation.origins] == [
        (one.adapter_id, one.weight) for one in response.adapters
    ]
    for origin in explanation.origins:
        assert sum(part.share for part in origin.tasks) == pytest.approx(origin.weight)
    assert explanation.origins[0].tasks[0].task_id == "sum"
    assert [(one.adapter_id, one.fate) for one in explanation.why_not][::2] == [
        ("abacus", pb.ADAPTER_FATE_SERVED),
        ("nobody", pb.ADAPTER_FATE_UNKNOWN),
    ]
    alone = (await router.route(why_not=["critic"], max_adapters=1)).explanation
    (said,) = alone.why_not
    assert (said.fate, said.task_id) == (pb.ADAPTER_FATE_WORTH_LESS, "sum")
    assert said.message
    assert alone.next_best.behind > 0
    assert not (await router.route()).HasField("explanation")


async def test_vector_comes_from_the_cache_when_asked_again(router) -> None:
    first, second = await router.route(), await router.route()
    assert (first.timings.cached, second.timings.cached) == (False, True)
    assert first.timings.encode_ms > 0
    assert second.timings.encode_ms == 0
    assert first.adapters == second.adapters
    assert first.decision_id != second.decision_id


async def test_messages_route_like_their_first_turn_when_a_conversation_goes_on(
    router,
) -> None:
    turns = [("user", QUERY), ("assistant", "13"), ("user", "and the capital of Peru?")]
    messages = [pb.ChatMessage(role=role, content=content) for role, content in turns]
    response = await router.route(query="", messages=messages)
    assert response.best_single.adapter_id == "abacus"
    assert response.timings.cached is False
    assert (await router.route()).timings.cached is True


async def test_batch_is_answered_in_order_when_queries_differ(router, lab) -> None:
    queries = ["a dull film", QUERY, "the capital of Spain", *(f"what is {n} plus 1" for n in range(253))]
    batch = pb.RouteBatchRequest(requests=[pb.RouteRequest(query=query) for query in queries])
    responses = (await router.stub.RouteBatch(batch, timeout=60)).responses
    assert [r.best_single.adapter_id for r in responses[:3]] == ["critic", "abacus", "atlas"]
    assert {r.generation for r in responses} == {lab.token(7)}
    assert len(responses) == 256


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"query": ""}, "INVALID_ARGUMENT", "EMPTY_QUERY"),
        ({"query": " \n "}, "INVALID_ARGUMENT", "EMPTY_QUERY"),
        ({"query": "a\0"}, "INVALID_ARGUMENT", "QUERY_HAS_NUL"),
        ({"query": "x" * (1024 * 1024 + 1)}, "INVALID_ARGUMENT", "QUERY_TOO_LARGE"),
        ({"messages": [pb.ChatMessage(role="user", content="x")]}, "INVALID_ARGUMENT", "QUERY_AND_MESSAGES"),
        ({"pool": "nowhere"}, "NOT_FOUND", "UNKNOWN_POOL"),
        ({"strategy": "magic"}, "INVALID_ARGUMENT", "UNKNOWN_STRATEGY"),
        ({"max_adapters": 17}, "INVALID_ARGUMENT", "MAX_ADAPTERS_OUT_OF_RANGE"),
        ({"max_adapters": -1}, "INVALID_ARGUMENT", "MAX_ADAPTERS_OUT_OF_RANGE"),
        ({"why_not": list("abcdefghi")}, "INVALID_ARGUMENT", "TOO_MANY_WHY_NOT"),
        ({"tenant": "other"}, "UNAVAILABLE", "NO_SNAPSHOT"),
        ({"min_generation": "soon"}, "INVALID_ARGUMENT", "INVALID_GENERATION"),
        ({"min_generation": encode_generation(7, "other")}, "INVALID_ARGUMENT", "FOREIGN_GENERATION"),
    ],
)
async def test_request_is_refused_with_a_reason_when_it_is_wrong(
    router, fields: dict[str, Any], code: str, reason: str
) -> None:
    error = await router.refusal(router.route(**fields))
    assert (error.grpc_status.name, error.reason) == (code, reason)
    batch = pb.RouteBatchRequest(
        requests=[pb.RouteRequest(query=QUERY), pb.RouteRequest(**{"query": QUERY, **fields})]
    )
    error = await router.refusal(router.stub.RouteBatch(batch, timeout=30))
    assert error.reason == reason
    assert error.metadata["request"] == "1"


@pytest.mark.parametrize(
    "query", ["🦜" * 1000, "مرحبا بالعالم", "\u05e9\u200f\u05dc", "x" * (1024 * 1024), "\u0301", "\x01"]
)
async def test_query_is_answered_when_it_is_unusual_but_valid(router, lab, query: str) -> None:
    response = await router.route(query=query)
    assert response.generation == lab.token(7)
    assert 0 <= response.typicality <= 1


@pytest.mark.parametrize(("count", "reason"), [(0, "BATCH_EMPTY"), (257, "BATCH_TOO_LARGE")])
async def test_batch_is_refused_when_its_size_is_wrong(router, count: int, reason: str) -> None:
    batch = pb.RouteBatchRequest(requests=[pb.RouteRequest(query=QUERY)] * count)
    error = await router.refusal(router.stub.RouteBatch(batch, timeout=30))
    assert (error.grpc_status, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_pool_must_be_named_when_there_are_several(lab) -> None:
    index = lab.index(1, pools=("left", "right"))
    async with lab.router_on(index) as router:
        error = await router.refusal(router.route())
        assert (error.reason, error.metadata["known"]) == ("POOL_REQUIRED", "left, right")
        assert (await router.route(pool="left")).pool == "left"
        shown = await router.stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=30)
        assert [(p.pool, p.task_count, p.adapter_count) for p in shown.pools] == [
            ("left", 3, 3),
            ("right", 3, 3),
        ]
        assert shown.pools[0].backends[0].kind == "engine"


async def test_adapter_is_resolved_and_listed_when_it_may_be_served(router, lab) -> None:
    for name in ("abacus", "abacus@1", "abacus@champion"):
        request = pb.ResolveAdapterRequest(adapter=name)
        resolved = await router.stub.ResolveAdapter(request, timeout=30)
        assert (resolved.adapter_id, resolved.version, resolved.digest, resolved.generation) == (
            "abacus",
            1,
            lab.digest_of("abacus", 7),
            lab.token(7),
        )
    listed: list[str] = []
    token = ""
    while True:
        page = pb.ListServableAdaptersRequest(page_size=2, page_token=token)
        response = await router.stub.ListServableAdapters(page, timeout=30)
        listed += [adapter.adapter_id for adapter in response.adapters]
        token = response.next_page_token
        if not token:
            break
    assert listed == ["abacus", "atlas", "critic"]
    unknown = router.stub.ResolveAdapter(pb.ResolveAdapterRequest(adapter="nobody"), timeout=30)
    assert (await router.refusal(unknown)).reason == "UNKNOWN_ADAPTER"
