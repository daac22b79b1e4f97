"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from typing import Any

from fastapi import Request
from fastapi.responses import Response

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
from lorauter_engine.api.openai_schemas import ChatRequest
from lorauter_engine.api.tgi import Served
from lorauter_engine.domain.values import Job, Step


async def chat(served: Served, request: Request, body: ChatRequest) -> Response:
    """Answers a conversation, whole or as a stream."""
    with ExitStack() as leaving:
        leaving.enter_context(served.engine.admitted())
        limit = body.max_completion_tokens or body.max_tokens
        top = (body.top_logprobs or 0) if body.logprobs else 0
        wish = body.openai_wish(adapters_of(served, body), limit, top)
        job = served.preparation.job([message.plain() for message in body.messages], wish)
        if body.stream:
            steps = served.engine.stream(job)
            first = await wire.watched(request, anext(steps))
            answer = Envelope(served, "chat.completion.chunk", "chatcmpl")
            events = _chat_events(body, answer, job, first, steps, leaving.pop_all())
            metrics.REQUESTS.labels(request.url.path, "success").inc()
            return wire.EventStream(wire.guarded(events, openai_error), {"x-compute-type": served.device})
        completed = await wire.watched(request, served.engine.generate(job))
    metrics.REQUESTS.labels(request.url.path, "success").inc()
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": completed.finish.clean_text},
        "logprobs": _logprobs(completed.steps) if body.logprobs else None,
        "finish_reason": FINISHES[completed.finish.reason],
    }
    answer = Envelope(served, "chat.completion", "chatcmpl")
    return wire.JsonResponse(answer.around([choice], usage=usage_of([completed.finish])))


async def _chat_events(
    body: ChatRequest,
    answer: Envelope,
    job: Job,
    first: Step,
    rest: AsyncGenerator[Step, None],
    leaving: ExitStack,
) -> AsyncGenerator[bytes, None]:
    with leaving:
        try:
            text = StoppedText(job)
            has_usage = bool(body.stream_options and body.stream_options.include_usage)
            more: dict[str, Any] = {"usage": None} if has_usage else {}
            async for step in _chained(first, rest):
                piece = text.add(step)
                choice = {
                    "index": 0,
                    "delta": {"role": "assistant", "content": piece},
                    "logprobs": _logprobs([step]) if body.logprobs else None,
                    "finish_reason": FINISHES[step.finish.reason] if step.finish else None,
                }
                if piece or step.index == 1 or step.finish or body.logprobs:
                    yield wire.event(answer.around([choice], **more))
                if step.finish and has_usage:
                    yield wire.event(answer.around([], usage=usage_of([step.finish])))
            yield DONE
        finally:
            await rest.aclose()


async def _chained(first: Step, rest: AsyncGenerator[Step, None]) -> AsyncGenerator[Step, None]:
    yield first
    async for step in rest:
        yield step


def _logprobs(steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": step.token.text,
                "logprob": step.token.logprob,
                "top_logprobs": [{"token": top.text, "logprob": top.logprob} for top in step.token.top],
            }
            for step in steps
        ]
    }
