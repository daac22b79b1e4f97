"""/v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lorauter.errors import LorauterError
from lorauter_engine import metrics
from lorauter_engine.api import wire
from lorauter_engine.api.openai_answers import (
    DONE,
    FINISHES,
    Envelope,
    StoppedText,
    adapters_of,
    openai_error,
    usage_of,
)
from lorauter_engine.api.openai_schemas import CompletionRequest
from lorauter_engine.api.tgi import Served
from lorauter_engine.domain.values import Finish, Job, Step
from lorauter_engine.service.engine import Completed


async def completions(served: Served, request: Request, body: CompletionRequest) -> Response:
    """Continues one prompt or several, whole or as a stream."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    with ExitStack() as leaving:
        leaving.enter_context(served.engine.admitted())
        wish = body.openai_wish(adapters_of(served, body), body.max_tokens, 0)
        jobs = [served.preparation.job(prompt, wish) for prompt in prompts]
        if body.stream:
            streams = [served.engine.stream(job) for job in jobs]
            first = await wire.watched(request, anext(streams[0]))
            answer = Envelope(served, "text_completion", "cmpl")
            events = _completion_events(body, answer, jobs, first, streams, leaving.pop_all())
            metrics.REQUESTS.labels(request.url.path, "success").inc()
            return wire.EventStream(wire.guarded(events, openai_error), {"x-compute-type": served.device})
        completed = await wire.watched(request, served.engine.generate_all(jobs, is_bulk=False))
    metrics.REQUESTS.labels(request.url.path, "success").inc()
    echoes = prompts if body.echo else [""] * len(prompts)
    choices = [
        _text_choice(index, echo, each)
        for index, (echo, each) in enumerate(zip(echoes, completed, strict=True))
    ]
    answer = Envelope(served, "text_completion", "cmpl")
    return wire.JsonResponse(answer.around(choices, usage=usage_of([each.finish for each in completed])))


async def _completion_events(
    body: CompletionRequest,
    answer: Envelope,
    jobs: Sequence[Job],
    first: Step,
    streams: Sequence[AsyncGenerator[Step, None]],
    leaving: ExitStack,
) -> AsyncGenerator[bytes, None]:
    with leaving:
        merged: asyncio.Queue[tuple[int, Step | LorauterError]] = asyncio.Queue()
        pumps = [asyncio.create_task(_pump(index, stream, merged)) for index, stream in enumerate(streams)]
        try:
            texts = [StoppedText(job) for job in jobs]
            finishes: list[Finish] = []
            index, step = 0, first
            while True:
                choice = {
                    "index": index,
                    "text": texts[index].add(step),
                    "logprobs": None,
                    "finish_reason": FINISHES[step.finish.reason] if step.finish else "",
                }
                if choice["text"] or step.finish:
                    yield wire.event(answer.around([choice]))
                if step.finish:
                    finishes.append(step.finish)
                if len(finishes) == len(jobs):
                    break
                index, received = await merged.get()
                if isinstance(received, LorauterError):
                    raise received
                step = received
            if body.stream_options and body.stream_options.include_usage:
                yield wire.event(answer.around([], usage=usage_of(finishes)))
            yield DONE
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    index: int,
    stream: AsyncGenerator[Step, None],
    merged: asyncio.Queue[tuple[int, Step | LorauterError]],
) -> None:
    try:
        async for step in stream:
            merged.put_nowait((index, step))
    except LorauterError as error:
        merged.put_nowait((index, error))
    finally:
        await stream.aclose()


def _text_choice(index: int, echo: str, completed: Completed) -> dict[str, Any]:
    return {
        "index": index,
        "text": echo + completed.finish.clean_text,
        "logprobs": None,
        "finish_reason": FINISHES[completed.finish.reason],
    }
