"""OpenAI's routes in the shapes in which TGI serves them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorauter.errors import InvalidArgument, LorauterError, UnprocessableRequest
from lorauter.identifiers import BASE
from lorauter.lora.store import parse_digest
from lorauter_engine import metrics
from lorauter_engine.api import wire
from lorauter_engine.api.schemas import ChatRequest, CompletionRequest, _OpenAi, pairs
from lorauter_engine.api.tgi import VERSION, Served
from lorauter_engine.domain.text import StopWatch
from lorauter_engine.domain.values import Finish, FinishReason, Job, Step
from lorauter_engine.service.engine import Completed

BASE_NAMES = frozenset({"", "tgi", BASE})
"""Names of the base model beside its own."""

_FINISHES = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS_TOKEN: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
}
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class _Envelope:
    """What all chunks of one answer share."""

    served: Served
    kind: str
    prefix: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": self.kind,
            "created": self.created,
            "model": self.served.model_id,
            "system_fingerprint": f"lorauter-engine-{VERSION}-{self.served.device}",
            "choices": choices,
            **more,
        }


def router(served: Served) -> APIRouter:
    """Returns the routes that the openai client uses."""
    routes = APIRouter(prefix="/v1")
    created = int(time.time())

    @routes.post("/chat/completions")
    async def chat(request: Request) -> Response:
        return await _chat(served, request, await wire.read(request, ChatRequest))

    @routes.post("/completions")
    async def completions(request: Request) -> Response:
        return await _completions(served, request, await wire.read(request, CompletionRequest))

    @routes.get("/models")
    async def models() -> Response:
        model = {"id": served.model_id, "object": "model", "created": created, "owned_by": "lorauter"}
        return wire.JsonResponse({"object": "list", "data": [model]})

    return routes


def _adapters(served: Served, body: _OpenAi) -> list[tuple[str, float]]:
    """Returns the set that ``model`` and ``adapters`` name."""
    name = body.model or ""
    if name in BASE_NAMES or name == served.model_id:
        return pairs(body.adapters, None)
    try:
        digest = parse_digest(name)
    except InvalidArgument:
        raise UnprocessableRequest(
            "MODEL_UNKNOWN",
            f"model {name[:80]!r} is unknown: use {served.model_id!r} or an adapter's digest",
            field="model",
        ) from None
    if body.adapters:
        raise UnprocessableRequest("INVALID_FIELD", "name an adapter in model or in adapters, not in both")
    return [(digest, 1.0)]


async def _chat(served: Served, request: Request, body: ChatRequest) -> Response:
    with ExitStack() as leaving:
        leaving.enter_context(served.engine.admitted())
        limit = body.max_completion_tokens or body.max_tokens
        top = (body.top_logprobs or 0) if body.logprobs else 0
        wish = body.openai_wish(_adapters(served, body), limit, top)
        job = served.preparation.job([message.plain() for message in body.messages], wish)
        if body.stream:
            steps = served.engine.stream(job)
            first = await wire.watched(request, anext(steps))
            answer = _Envelope(served, "chat.completion.chunk", "chatcmpl")
            events = _chat_events(body, answer, job, first, steps, leaving.pop_all())
            metrics.REQUESTS.labels(request.url.path, "success").inc()
            return wire.EventStream(wire.guarded(events, _error_event), {"x-compute-type": served.device})
        completed = await wire.watched(request, served.engine.generate(job))
    metrics.REQUESTS.labels(request.url.path, "success").inc()
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": completed.finish.clean_text},
        "logprobs": _logprobs(completed.steps) if body.logprobs else None,
        "finish_reason": _FINISHES[completed.finish.reason],
    }
    answer = _Envelope(served, "chat.completion", "chatcmpl")
    return wire.JsonResponse(answer.around([choice], usage=_usage([completed.finish])))


async def _chat_events(
    body: ChatRequest,
    answer: _Envelope,
    job: Job,
    first: Step,
    rest: AsyncGenerator[Step, None],
    leaving: ExitStack,
) -> AsyncGenerator[bytes, None]:
    with leaving:
        try:
            text = _StoppedText(job)
            async for step in _chained(first, rest):
                piece = text.add(step)
                delta = {"role": "assistant", "content": piece} if piece or step.index == 1 else {}
                choice = {
                    "index": 0,
                    "delta": delta,
                    "logprobs": _logprobs([step]) if body.logprobs else None,
                    "finish_reason": _FINISHES[step.finish.reason] if step.finish else None,
                }
                if delta or step.finish or body.logprobs:
                    yield _event(answer.around([choice]))
                if step.finish and body.stream_options and body.stream_options.include_usage:
                    yield _event(answer.around([], usage=_usage([step.finish])))
            yield _DONE
        finally:
            await rest.aclose()


async def _completions(served: Served, request: Request, body: CompletionRequest) -> Response:
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    with ExitStack() as leaving:
        leaving.enter_context(served.engine.admitted())
        wish = body.openai_wish(_adapters(served, body), body.max_tokens, 0)
        jobs = [served.preparation.job(prompt, wish) for prompt in prompts]
        if body.stream:
            streams = [served.engine.stream(job) for job in jobs]
            first = await wire.watched(request, anext(streams[0]))
            answer = _Envelope(served, "text_completion", "cmpl")
            events = _completion_events(body, answer, jobs, first, streams, leaving.pop_all())
            metrics.REQUESTS.labels(request.url.path, "success").inc()
            return wire.EventStream(wire.guarded(events, _error_event), {"x-compute-type": served.device})
        completed = await wire.watched(request, served.engine.generate_all(jobs, is_bulk=False))
    metrics.REQUESTS.labels(request.url.path, "success").inc()
    echoes = prompts if body.echo else [""] * len(prompts)
    choices = [
        _text_choice(index, echo, each)
        for index, (echo, each) in enumerate(zip(echoes, completed, strict=True))
    ]
    answer = _Envelope(served, "text_completion", "cmpl")
    return wire.JsonResponse(answer.around(choices, usage=_usage([each.finish for each in completed])))


async def _completion_events(
    body: CompletionRequest,
    answer: _Envelope,
    jobs: Sequence[Job],
    first: Step,
    streams: Sequence[AsyncGenerator[Step, None]],
    leaving: ExitStack,
) -> AsyncGenerator[bytes, None]:
    with leaving:
        merged: asyncio.Queue[tuple[int, Step | LorauterError]] = asyncio.Queue()
        pumps = [asyncio.create_task(_pump(index, stream, merged)) for index, stream in enumerate(streams)]
        try:
            texts = [_StoppedText(job) for job in jobs]
            finishes: list[Finish] = []
            index, step = 0, first
            while True:
                choice = {
                    "index": index,
                    "text": texts[index].add(step),
                    "logprobs": None,
                    "finish_reason": _FINISHES[step.finish.reason] if step.finish else "",
                }
                if choice["text"] or step.finish:
                    yield _event(answer.around([choice]))
                if step.finish:
                    finishes.append(step.finish)
                if len(finishes) == len(jobs):
                    break
                index, received = await merged.get()
                if isinstance(received, LorauterError):
                    raise received
                step = received
            if body.stream_options and body.stream_options.include_usage:
                yield _event(answer.around([], usage=_usage(finishes)))
            yield _DONE
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


class _StoppedText:
    """The text of a stream without stop sequences: what may be the beginning of one is held back."""

    def __init__(self, job: Job) -> None:
        self._stops = StopWatch(job.stop)
        self._text = ""
        self._sent = 0

    def add(self, step: Step) -> str:
        """Returns what can be sent now."""
        if step.finish is not None:
            piece = step.finish.clean_text[self._sent :]
        else:
            self._text += "" if step.token.special else step.token.text
            piece = self._text[self._sent : len(self._text) - self._stops.held_back(self._text)]
        self._sent += len(piece)
        return piece


async def _chained(first: Step, rest: AsyncGenerator[Step, None]) -> AsyncGenerator[Step, None]:
    yield first
    async for step in rest:
        yield step


def _text_choice(index: int, echo: str, completed: Completed) -> dict[str, Any]:
    return {
        "index": index,
        "text": echo + completed.finish.clean_text,
        "logprobs": None,
        "finish_reason": _FINISHES[completed.finish.reason],
    }


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


def _usage(finishes: Sequence[Finish]) -> dict[str, int]:
    prompt = sum(finish.prompt_tokens for finish in finishes)
    completion = sum(finish.generated_tokens for finish in finishes)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(body: object) -> bytes:
    return wire.event(body).replace(b"data:", b"data: ", 1)


def _error_event(error: LorauterError) -> bytes:
    status, body = wire.described(error)
    return _event(
        {"error": {"message": body["error"], "http_status_code": status, "type": body["error_type"]}}
    )
