"""Recorded queries, decided anew over gRPC."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.replaying import pack_vector

QUERIES = ("what is 8 plus 5", "a dull film", "the capital of Spain")


@pytest.fixture
def recorded(lab) -> list[pb.RecordedQuery]:
    return [pb.RecordedQuery(vector=pack_vector(vector)) for vector in lab.encoder.encode(QUERIES)]


async def test_replay_decides_as_the_routes_did_when_nothing_changed(router, lab, recorded) -> None:
    routed = [await router.route(query=query) for query in QUERIES]
    request = pb.ReplayRequest(pool="p", queries=recorded, encoder_digest=lab.encoder.digest)
    replayed = (await router.stub.Replay(request, timeout=30)).responses
    assert [one.best_single.adapter_id for one in replayed] == ["abacus", "critic", "atlas"]
    for before, after in zip(routed, replayed, strict=True):
        assert [one.adapter_id for one in after.adapters] == [one.adapter_id for one in before.adapters]
        assert after.best_single.expected_utility == pytest.approx(
            before.best_single.expected_utility, abs=0.01
        )
        assert (after.profile_digest, after.generation) == (before.profile_digest, lab.token(7))
        assert (after.decision_id, after.HasField("timings")) == ("", False)


async def test_replay_decides_by_other_constants_and_strategies_when_asked(router, recorded) -> None:
    constants = {"dense_weight": 0.0, "lexical_weight": 0.0, "default_tasks": 3.0}
    request = pb.ReplayRequest(queries=recorded, constants=constants)
    for _ in range(2):
        blind = (await router.stub.Replay(request, timeout=30)).responses
        assert [len(one.adapters) for one in blind] == [3, 3, 3]
        assert {round(one.tasks[0].probability, 6) for one in blind} == {round(1 / 3, 6)}
    assert blind[0].profile_digest != (await router.route()).profile_digest
    recorded[0].strategy = "paper"
    recorded[0].exclude_adapters.append("abacus")
    (paper, *_) = (await router.stub.Replay(pb.ReplayRequest(queries=recorded), timeout=30)).responses
    assert (paper.strategy, paper.HasField("explanation")) == ("paper", False)
    recorded[0].why_not.append("abacus")
    (asked, *_) = (await router.stub.Replay(pb.ReplayRequest(queries=recorded), timeout=30)).responses
    assert [one.fate for one in asked.explanation.why_not] == [pb.ADAPTER_FATE_EXCLUDED]
    assert "abacus" not in {one.adapter_id for one in paper.adapters}


async def test_replay_is_of_what_is_served_when_it_is_another_snapshot_of_the_same_generation(
    lab, recorded
) -> None:
    index = lab.index(7)
    async with lab.router_on(index) as router:
        request = pb.ReplayRequest(queries=recorded, constants={"dense_weight": 5.0})
        assert len((await router.stub.Replay(request, timeout=30)).responses[0].tasks) == 3
        (pool,) = lab.snapshot(7).pools.values()
        index.publish(replace(lab.snapshot(7), pools={"p": replace(pool, tasks=pool.tasks[:2])}), [])
        await lab.eventually(lambda: len(router.served().snapshot.pools["p"].tasks) == 2)
        assert len((await router.stub.Replay(request, timeout=30)).responses[0].tasks) == 2


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"queries": []}, "INVALID_ARGUMENT", "REPLAY_EMPTY"),
        ({"queries": [pb.RecordedQuery()] * 257}, "INVALID_ARGUMENT", "REPLAY_TOO_LARGE"),
        ({"queries": [pb.RecordedQuery()]}, "INVALID_ARGUMENT", "INVALID_FEATURES"),
        ({"queries": [pb.RecordedQuery(vector=b"12")]}, "INVALID_ARGUMENT", "INVALID_VECTORS"),
        ({"queries": [pb.RecordedQuery(strategy="magic")]}, "INVALID_ARGUMENT", "UNKNOWN_STRATEGY"),
        ({"constants": {"temperature": 0.0}}, "INVALID_ARGUMENT", "INVALID_CONSTANTS"),
        ({"pool": "nowhere"}, "NOT_FOUND", "UNKNOWN_POOL"),
        ({"encoder_digest": "sha256:other"}, "FAILED_PRECONDITION", "ENCODER_CHANGED"),
    ],
)
async def test_replay_is_refused_with_a_reason_when_it_is_wrong(
    router, recorded, fields: dict[str, Any], code: str, reason: str
) -> None:
    request = pb.ReplayRequest(**{"queries": recorded, **fields})
    error = await router.refusal(router.stub.Replay(request, timeout=30))
    assert (error.grpc_status.name, error.reason) == (code, reason)
    if len(fields.get("queries", ())) == 1:
        assert error.metadata["query"] == "0"


async def test_replay_follows_the_snapshot_and_remembers_a_few_constants_only(lab, recorded) -> None:
    index = lab.index(7)
    async with lab.router_on(index) as router:
        asked = [{"dense_weight": float(weight), "lexical_weight": 0.0} for weight in (1, 2, 3, 4, 5, 6, 1)]
        found = [
            (
                await router.stub.Replay(pb.ReplayRequest(queries=recorded, constants=one), timeout=30)
            ).responses
            for one in asked
        ]
        likeliest = [one[0].tasks[0].probability for one in found]
        assert likeliest[:6] == sorted(likeliest[:6])
        assert found[6] == found[0]
        index.publish(lab.snapshot(8), [])
        newer = lab.token(8)
        await router.route(min_generation=newer)
        request = pb.ReplayRequest(queries=recorded, constants=asked[0])
        after = (await router.stub.Replay(request, timeout=30)).responses
        assert {one.generation for one in after} == {newer}
        assert after[0].adapters[0].digest == lab.digest_of("abacus", 8)
