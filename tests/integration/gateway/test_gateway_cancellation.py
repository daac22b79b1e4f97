"""Whoever gives up, by deadline, cancel or disconnect, stops the engine at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lorauter.errors import DeadlineExceeded, LorauterError

PROMPT = {"inputs": "what is 1 plus 2"}
Stand = Any


@pytest.mark.parametrize("step", ["hang", "endless"])
@pytest.mark.parametrize("prompt", ["raw", "chat"])
async def test_grpc_deadline_stops_the_engine(stand: Stand, step: str, prompt: str) -> None:
    stand.engine.script.append(step)
    text = "hi" if prompt == "raw" else [{"role": "user", "content": "hi"}]
    with pytest.raises(DeadlineExceeded):
        [piece async for piece in stand.client.with_timeout(0.3).generate_stream(text)]
    await stand.until_engine_stopped()


async def test_grpc_cancel_stops_the_engine(stand: Stand) -> None:
    stand.engine.script.append("endless")
    stream = stand.client.generate_stream("hi")
    await anext(stream)
    await stream.aclose()
    await stand.until_engine_stopped()


async def test_a_grpc_caller_who_does_not_read_is_given_up(start: Callable[..., Any]) -> None:
    async with start(request_timeout_seconds=2) as stand:
        stand.engine.words = ("x" * 500_000, "end")
        stand.engine.script.append("endless")
        stream = stand.client.with_timeout(60).generate_stream("hi")
        await anext(stream)
        await stand.until_engine_stopped()

        async def is_idle() -> bool:
            return await stand.metric("lorauter_gateway_in_flight") == 0

        await stand.until(is_idle)
        with pytest.raises(LorauterError):
            [piece async for piece in stream]


async def test_grpc_cancel_stops_the_engine_when_nothing_is_streamed(stand: Stand) -> None:
    stand.engine.script.append("hang")
    call = asyncio.ensure_future(stand.client.generate("hi"))
    await asyncio.wait_for(stand.engine.begun.wait(), 30)
    call.cancel()
    await stand.until_engine_stopped()


@pytest.mark.parametrize(
    ("path", "step"),
    [("/generate", "hang"), ("/generate_stream", "hang"), ("/generate_stream", "endless"), ("/", "hang")],
)
async def test_http_disconnect_stops_the_engine(stand: Stand, path: str, step: str) -> None:
    stand.engine.script.append(step)
    call = asyncio.ensure_future(stand.post(path, PROMPT))
    await asyncio.wait_for(stand.engine.begun.wait(), 30)
    call.cancel()
    await stand.until_engine_stopped()

    async def is_idle() -> bool:
        return await stand.metric("lorauter_gateway_in_flight") == 0

    await stand.until(is_idle)
