"""A decision that was made is answered again on the same snapshot, and never on another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorauter.encoder import Encoder
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.decision import RouteOptions
from lorauter_router.memory import key_of


class CountingEncoder:
    """The real encoder, and every text that it encoded."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.digest, self.dimension = encoder.digest, encoder.dimension
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += texts
        return self._encoder.encode(texts)


def decision(answer: pb.RouteResponse) -> pb.RouteResponse:
    """The answer without what differs from call to call."""
    kept = pb.RouteResponse()
    kept.CopyFrom(answer)
    kept.decision_id = ""
    kept.ClearField("timings")
    return kept


async def test_decision_is_answered_again_when_query_and_snapshot_are_the_same(lab: Any) -> None:
    counting = CountingEncoder(lab.encoder)
    async with lab.router_on(lab.index(1), encoder=counting, query_cache=0) as router:
        first, second = [await router.route() for _ in range(2)]
        assert counting.texts == [lab.query]
        assert decision(second) == decision(first)
        assert second.decision_id != first.decision_id
        assert (first.timings.cached, second.timings.cached) == (False, True)


async def test_query_is_decided_anew_when_anything_else_differs(lab: Any) -> None:
    counting = CountingEncoder(lab.encoder)
    index = lab.index(1, pools=("p", "q"))
    async with lab.router_on(index, encoder=counting, query_cache=0) as router:
        calls: list[dict[str, Any]] = [
            {"pool": "p"},
            {"pool": "q"},
            {"pool": "p", "strategy": "paper"},
            {"pool": "p", "exclude_adapters": ["abacus"]},
            {"pool": "p", "query": f"{lab.query} "},
            {"pool": "p", "explain": True},
        ]
        answers = [await router.route(**fields) for fields in calls]
        assert len(counting.texts) == len(calls)
        assert answers[3].best_single.adapter_id != "abacus" == answers[0].best_single.adapter_id
        index.publish(lab.snapshot(2, pools=("p", "q")), [])
        await lab.eventually(lambda: router.served().snapshot.generation == 2)
        anew = await router.route(pool="p")
        assert anew.best_single.digest == lab.digest_of("abacus", 2)
        assert len(counting.texts) == len(calls) + 1


async def test_nothing_is_remembered_when_the_memory_is_switched_off(lab: Any) -> None:
    counting = CountingEncoder(lab.encoder)
    async with lab.router_on(lab.index(1), encoder=counting, query_cache=0, decision_cache=0) as router:
        first, second = [await router.route() for _ in range(2)]
        assert counting.texts == [lab.query] * 2
        assert decision(first) == decision(second)


async def test_explanation_is_made_anew_when_its_decision_is_known(lab: Any) -> None:
    async with lab.router_on(lab.index(1)) as router:
        plain = await router.route()
        for _ in range(2):
            explained = await router.route(explain=True, why_not=["atlas"])
            assert [said.adapter_id for said in explained.explanation.why_not] == ["atlas"]
        again = await router.route()
        assert not again.HasField("explanation")
        assert decision(again) == decision(plain)


def test_key_tells_all_that_a_decision_depends_on() -> None:
    plain = RouteOptions()
    others = [
        RouteOptions(strategy="paper"),
        RouteOptions(max_adapters=1),
        RouteOptions(task_count=1),
        RouteOptions(tags=frozenset({"a", "b"})),
        RouteOptions(exclude_tasks=frozenset({"a", "b"})),
        RouteOptions(exclude_adapters=frozenset({"a", "b"})),
    ]
    keys = [key_of("own", "s", "p", "text", options) for options in (plain, *others)]
    keys += [
        key_of("own", "t", "p", "text", plain),
        key_of("own", "s", "q", "text", plain),
        key_of("own", "s", "p", "t", plain),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[4] == key_of("own", "s", "p", "text", RouteOptions(tags=frozenset({"b", "a"})))
