"""TGI's routes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorauter.errors import UnprocessableRequest
from lorauter_engine import metrics
from lorauter_engine.api import wire
from lorauter_engine.api.openai_schemas import MAX_PROMPTS, ChatRequest
from lorauter_engine.api.schemas import MAX_BEST_OF, GenerateRequest, refuse
from lorauter_engine.domain.values import Finish, Job, Step, Token
from lorauter_engine.service.engine import Completed, Engine
from lorauter_engine.service.prepare import MAX_STOP_SEQUENCES, Preparation

VERSION = "0.1.0"


@dataclass(frozen=True, slots=True)
class Served:
    """What the routes need: the engine, its preparation, and what it says of itself."""

    engine: Engine
    preparation: Preparation
    model_id: str
    device: str
    max_requests: int


def router(served: Served) -> APIRouter:
    """Returns the routes that huggingface_hub's InferenceClient and TGI's gateways use."""
    routes = APIRouter()

    @routes.post("/generate")
    async def generate(request: Request) -> Response:
        return await _generate(served, request, await wire.read(request, GenerateRequest), False)

    @routes.post("/generate_stream")
    async def generate_stream(request: Request) -> Response:
        return await _stream(served, request, await wire.read(request, GenerateRequest))

    @routes.post("/")
    async def compat(request: Request) -> Response:
        body = await wire.read(request, GenerateRequest)
        if body.stream:
            return await _stream(served, request, body)
        return await _generate(served, request, body, True)

    @routes.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await wire.read(request, GenerateRequest)
        pieces = _pieces(served, body.inputs, True)
        return wire.JsonResponse(pieces[-(body.given().truncate or len(pieces)) :])

    @routes.post("/chat_tokenize")
    async def chat_tokenize(request: Request) -> Response:
        body = await wire.read(request, ChatRequest)
        text = served.preparation.codec.render([message.plain() for message in body.messages])
        return wire.JsonResponse({"tokenize_response": _pieces(served, text, False), "templated_text": text})

    @routes.get("/")
    @routes.get("/health")
    @routes.get("/ping")
    async def health() -> Response:
        if served.engine.is_alive():
            return Response()
        return wire.JsonResponse({"error": "unhealthy", "error_type": "healthcheck"}, status_code=503)

    @routes.get("/info")
    async def info() -> Response:
        return wire.JsonResponse(_info(served))

    return routes


async def _generate(served: Served, request: Request, body: GenerateRequest, as_list: bool) -> Response:
    started = time.monotonic()
    with served.engine.admitted():
        parameters = body.given()
        jobs = _jobs(served, body)
        validated = time.monotonic()
        done = await wire.watched(request, served.engine.generate_all(jobs, is_bulk=False))
    best, *others = sorted(done, key=_mean_logprob, reverse=True)
    finish = best.finish
    answer: dict[str, Any] = {"generated_text": _full_text(body, finish)}
    if parameters.details or parameters.decoder_input_details:
        answer["details"] = _details(best)
    if parameters.details and others:
        answer["details"]["best_of_sequences"] = [
            {"generated_text": _full_text(body, other.finish), **_details(other)} for other in others
        ]
    metrics.REQUESTS.labels(request.url.path, "success").inc()
    headers = _timings(served, body, finish, validated - started, time.monotonic() - started)
    return wire.JsonResponse([answer] if as_list else answer, headers=headers)


def _jobs(served: Served, body: GenerateRequest) -> list[Job]:
    """Returns as many jobs as ``best_of`` says, each with a seed of its own."""
    parameters = body.given()
    wish = parameters.wish(is_quiet=not parameters.details)
    jobs = [served.preparation.job(body.inputs, wish) for _ in range(parameters.candidates)]
    if len(jobs) > 1 and not jobs[0].sampling.do_sample:
        field = "parameters.best_of"
        message = f"{field}: sample, or all answers are the same one: set do_sample"
        raise UnprocessableRequest("INVALID_FIELD", message, field=field)
    return jobs


def _mean_logprob(completed: Completed) -> float:
    return sum(step.token.logprob for step in completed.steps) / len(completed.steps)


async def _stream(served: Served, request: Request, body: GenerateRequest) -> Response:
    with ExitStack() as leaving:
        leaving.enter_context(served.engine.admitted())
        parameters = body.given()
        refuse(
            {
                "parameters.best_of": parameters.candidates > 1,
                "parameters.decoder_input_details": parameters.decoder_input_details,
            },
            "does not stream",
        )
        job = served.preparation.job(body.inputs, parameters.wish())
        steps = served.engine.stream(job)
        # What goes wrong before the first token still gets a status of its own.
        first = await wire.watched(request, anext(steps))
        events = _events(body, first, steps, leaving.pop_all())
    metrics.REQUESTS.labels(request.url.path, "success").inc()
    headers = {"x-compute-type": served.device, "x-compute-characters": str(len(body.inputs))}
    return wire.EventStream(wire.guarded(events, wire.error_event), headers)


async def _events(
    body: GenerateRequest, first: Step, rest: AsyncGenerator[Step, None], leaving: ExitStack
) -> AsyncGenerator[bytes, None]:
    with leaving:
        try:
            yield wire.event(_stream_response(body, first))
            async for step in rest:
                yield wire.event(_stream_response(body, step))
        finally:
            await rest.aclose()


def _stream_response(body: GenerateRequest, step: Step) -> dict[str, Any]:
    event: dict[str, Any] = {"index": step.index, "token": token_body(step.token)}
    if step.token.top:
        event["top_tokens"] = [token_body(token) for token in step.token.top]
    event["generated_text"] = None
    event["details"] = None
    if step.finish is not None:
        event["generated_text"] = _full_text(body, step.finish)
        if body.given().details:
            event["details"] = _outcome(step.finish) | {"input_length": step.finish.prompt_tokens}
    return event


def token_body(token: Token) -> dict[str, Any]:
    """Returns a token as TGI writes it."""
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


def _details(completed: Completed) -> dict[str, Any]:
    details: dict[str, Any] = _outcome(completed.finish) | {
        "prefill": [
            {"id": token.id, "text": token.text, "logprob": token.logprob}
            for token in completed.finish.prefill
        ],
        "tokens": [token_body(step.token) for step in completed.steps],
    }
    if any(step.token.top for step in completed.steps):
        details["top_tokens"] = [[token_body(top) for top in step.token.top] for step in completed.steps]
    return details


def _outcome(finish: Finish) -> dict[str, Any]:
    return {
        "finish_reason": finish.reason.value,
        "generated_tokens": finish.generated_tokens,
        "seed": finish.seed,
    }


def _full_text(body: GenerateRequest, finish: Finish) -> str:
    return body.inputs + finish.text if body.given().return_full_text else finish.text


def _timings(
    served: Served, body: GenerateRequest, finish: Finish, validation: float, total: float
) -> Mapping[str, str]:
    def milliseconds(seconds: float) -> str:
        return str(round(seconds * 1000))

    return {
        "x-compute-type": served.device,
        "x-compute-time": str(max(1, round(total))),
        "x-compute-characters": str(len(body.inputs)),
        "x-total-time": milliseconds(total),
        "x-validation-time": milliseconds(validation),
        "x-queue-time": milliseconds(finish.queue_seconds),
        "x-inference-time": milliseconds(finish.inference_seconds),
        "x-time-per-token": milliseconds(finish.inference_seconds / max(1, finish.generated_tokens)),
        "x-prompt-tokens": str(finish.prompt_tokens),
        "x-generated-tokens": str(finish.generated_tokens),
    }


def _pieces(served: Served, text: str, add_special: bool) -> list[dict[str, Any]]:
    return [
        {"id": piece.id, "text": piece.text, "start": piece.start, "stop": piece.stop}
        for piece in served.preparation.codec.pieces(text, add_special)
    ]


def _info(served: Served) -> dict[str, Any]:
    context = served.preparation.context
    return {
        "model_id": served.model_id,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": served.max_requests,
        "max_best_of": MAX_BEST_OF,
        "max_stop_sequences": MAX_STOP_SEQUENCES,
        "max_input_tokens": context - 1,
        "max_total_tokens": context,
        "validation_workers": 1,
        "max_client_batch_size": MAX_PROMPTS,
        "router": "lorauter-engine",
        "version": VERSION,
        "sha": None,
        "docker_label": None,
    }
