"""A conversation keeps what answered its last turn, unless something else is worth its prefix cache."""

from __future__ import annotations

from typing import Any

import httpx

from lorauter.router.v1 import router_pb2
from tests.integration.gateway.conftest import DIGESTS, Stand

FIRST = [{"role": "user", "content": "Sort these words"}]
SECOND = [*FIRST, {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "b a"}]


def _single(name: str, utility: float) -> router_pb2.BestSingle:
    return router_pb2.BestSingle(
        adapter_id=name, version=1, expected_utility=utility, digest=DIGESTS.get(name, "")
    )


def _decided(stand: Stand, best: str, others: dict[str, float], utility: float = 0.9) -> None:
    decision = stand.router.decision
    del decision.adapters[:]
    decision.adapters.add(adapter_id=best, version=1, weight=1.0, digest=DIGESTS[best])
    decision.best_single.CopyFrom(_single(best, utility))
    del decision.runners_up[:]
    decision.runners_up.extend(_single(name, worth) for name, worth in others.items())


async def _ask(stand: Stand, messages: list[dict[str, str]], **more: Any) -> httpx.Response:
    answer = await stand.post("/v1/chat/completions", {"model": "auto", "messages": messages, **more})
    assert answer.status_code == 200, answer.text
    return answer


async def test_a_conversation_keeps_its_adapter_where_another_gains_next_to_nothing(stand: Stand) -> None:
    _decided(stand, "adds", {"2adds": 0.5})
    first = await _ask(stand, FIRST)
    assert first.json()["model"] == "adds"
    _decided(stand, "2adds", {"adds": 0.89})
    second = await _ask(stand, SECOND)
    assert second.json()["model"] == "adds"
    assert second.headers["x-lorauter-adapters"] == "adds;w=1.0"
    assert second.headers["x-lorauter-kept"].startswith(
        "the conversation keeps adds@1, which is expected to lose 0.010"
    )
    assert "x-lorauter-kept" not in first.headers
    assert "x-lorauter-degraded" not in second.headers


async def test_streams_and_whole_answers_share_a_conversation(stand: Stand) -> None:
    _decided(stand, "adds", {"2adds": 0.5})
    await _ask(stand, FIRST, stream=True)
    _decided(stand, "2adds", {"adds": 0.89})
    third = [*SECOND, {"role": "assistant", "content": "a b"}, {"role": "user", "content": "more"}]
    for messages in (SECOND, third):
        assert (await _ask(stand, messages)).json()["model"] == "adds"


async def test_a_conversation_changes_where_that_is_worth_its_cache(stand: Stand) -> None:
    _decided(stand, "adds", {"2adds": 0.5})
    await _ask(stand, FIRST)
    _decided(stand, "2adds", {"adds": 0.6})
    assert (await _ask(stand, SECOND)).json()["model"] == "2adds"
    _decided(stand, "adds", {"2adds": 0.89})
    third = [*SECOND, {"role": "assistant", "content": "a b"}, {"role": "user", "content": "more"}]
    assert (await _ask(stand, third)).json()["model"] == "2adds"


async def test_only_what_goes_on_keeps_anything(stand: Stand) -> None:
    _decided(stand, "adds", {"2adds": 0.5})
    await _ask(stand, FIRST)
    _decided(stand, "2adds", {"adds": 0.89})
    assert (await _ask(stand, FIRST)).json()["model"] == "2adds"


async def test_an_adapter_that_the_decision_no_longer_knows_is_not_kept(stand: Stand) -> None:
    _decided(stand, "adds", {})
    await _ask(stand, FIRST)
    _decided(stand, "2adds", {})
    assert (await _ask(stand, SECOND)).json()["model"] == "2adds"
