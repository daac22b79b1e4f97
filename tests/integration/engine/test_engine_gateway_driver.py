"""The gateway's driver of the engine, against the real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from lorauter.errors import InvalidArgument, UnprocessableRequest
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.engine import EngineDriver
from lorauter_gateway.domain.model import FinishReason, Message, Prompt, sampling
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.ports import BackendCall, BackendFailed


@pytest.fixture
async def engine(url: str) -> AsyncIterator[EngineDriver]:
    async with Connections(request_timeout_seconds=60, connect_timeout_seconds=5) as connections:
        yield EngineDriver(url, connections)


def call(prompt: Prompt, *adapters: WeightedAdapter, **settings: Any) -> BackendCall:
    return BackendCall(prompt, sampling(max_new_tokens=6, **settings), adapters, "", "test/tiny")


@pytest.fixture
def weighted(pool) -> list[WeightedAdapter]:
    return [WeightedAdapter(name, 1, 0.5, pool.adapters[name]) for name in ("plain", "wide")]


async def test_a_weighted_set_answers_alike_whole_and_streamed(engine: EngineDriver, weighted) -> None:
    for prompt in ("the cat sat on", (Message("user", "the cat"),)):
        whole = await engine.generate(call(prompt, *weighted))
        pieces = [piece async for piece in await engine.stream(call(prompt, *weighted))]
        assert "".join(piece.text for piece in pieces) == whole.text
        last = pieces[-1].finish
        assert (last.text, last.usage, last.finish_reason) == (whole.text, whole.usage, whole.finish_reason)
        assert last.usage.completion_tokens == 6
        assert last.finish_reason is FinishReason.LENGTH


async def test_reading_tells_the_set_from_the_base(engine: EngineDriver, weighted) -> None:
    text = "the cat sat on the mat"
    base = await engine.read(text, [], "", "test/tiny")
    both = await engine.read(text, weighted, "", "test/tiny")
    assert len(base) == len(both) > 3
    assert all(logprob <= 0 for logprob in [*base, *both])
    assert max(abs(one - other) for one, other in zip(base, both, strict=True)) > 1e-3


async def test_limits_and_health(engine: EngineDriver) -> None:
    limits = await engine.limits()
    assert limits.max_total_tokens == 256
    assert limits.max_concurrent_requests > 0
    assert await engine.is_healthy()


async def test_refusals(engine: EngineDriver, weighted) -> None:
    with pytest.raises(UnprocessableRequest) as too_long:
        await engine.generate(call("the cat " * 400))
    assert too_long.value.reason == "PROMPT_TOO_LONG"
    with pytest.raises(InvalidArgument):
        await engine.generate(call("the cat", extra={"watermark": True}))
    unknown = WeightedAdapter("gone", 1, 1.0, "sha256:" + "0" * 64)
    with pytest.raises(BackendFailed) as missing:
        await engine.generate(call("the cat", unknown))
    assert (missing.value.is_missing, missing.value.is_fault) == (True, False)
