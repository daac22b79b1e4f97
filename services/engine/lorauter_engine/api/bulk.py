"""Our own routes: many prompts, each with its own weighted adapter set, in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorauter.errors import Exhausted, LorauterError, UnprocessableRequest
from lorauter_engine import metrics
from lorauter_engine.api import wire
from lorauter_engine.api.bulk_schemas import GenerateBatchRequest, ScoreRequest
from lorauter_engine.api.schemas import pairs
from lorauter_engine.api.tgi import Served
from lorauter_engine.domain.values import Job, Score, ScoreItem
from lorauter_engine.service.engine import Completed

Item = TypeVar("Item")
Made = TypeVar("Made")
Outcome = TypeVar("Outcome")
Answer = dict[str, Any]


def router(served: Served) -> APIRouter:
    """Returns /score and /generate_batch, which matching uses."""
    routes = APIRouter()
    engine = served.engine

    @routes.post("/score")
    async def score(request: Request) -> Response:
        with engine.admitted():
            body = await wire.read(request, ScoreRequest)
            items = await asyncio.to_thread(_score_items, served, body)
            work = engine.score_each if body.partial else engine.score
            answers = await _answers(request, items, work, _score)
        metrics.REQUESTS.labels("/score", "success").inc()
        return wire.JsonResponse({"items": answers})

    @routes.post("/generate_batch")
    async def generate_batch(request: Request) -> Response:
        with engine.admitted():
            body = await wire.read(request, GenerateBatchRequest)
            jobs = await asyncio.to_thread(_jobs, served, body)
            work = engine.generate_each if body.partial else engine.generate_all
            answers = await _answers(request, jobs, work, _completed)
        metrics.REQUESTS.labels("/generate_batch", "success").inc()
        return wire.JsonResponse({"items": answers})

    return routes


def _score(score: Score) -> Answer:
    return {"logprob": score.logprob, "tokens": score.tokens, "exact": score.exact}


def _completed(completed: Completed) -> Answer:
    finish = completed.finish
    return {
        "generated_text": finish.clean_text,
        "tokens": finish.generated_tokens,
        "finish_reason": finish.reason.value,
    }


async def _answers(
    request: Request,
    made: Sequence[Made | LorauterError],
    work: Callable[[list[Made]], Awaitable[Sequence[Outcome | LorauterError]]],
    describe: Callable[[Outcome], Answer],
) -> list[Answer]:
    """Works on what could be made; returns an answer for each item.

    Raises Exhausted if nothing could be done but wait, so that callers pause before they ask again.
    """
    ready = [item for item in made if not isinstance(item, LorauterError)]
    done = iter(await wire.watched(request, work(ready)) if ready else [])
    outcomes = [item if isinstance(item, LorauterError) else next(done) for item in made]
    waits = [outcome for outcome in outcomes if isinstance(outcome, Exhausted)]
    if waits and len(waits) == len(outcomes):
        raise waits[0]
    return [_failed(each) if isinstance(each, LorauterError) else describe(each) for each in outcomes]


def _failed(error: LorauterError) -> Answer:
    return {"error": error.message, "reason": error.reason, "fault": _fault(error)}


def _fault(error: LorauterError) -> str:
    if isinstance(error, Exhausted):
        return "busy"
    if error.reason == "OUTPUT_NOT_FINITE":
        return "output"
    if error.reason.startswith("ADAPTER_"):
        return "adapter"
    if isinstance(error, UnprocessableRequest):
        return "item"
    raise error  # a defect, or the engine is stopping: that is no item's fault


def _score_items(served: Served, body: ScoreRequest) -> list[ScoreItem | LorauterError]:
    prepare = served.preparation.score_item
    return _each(
        body.items,
        lambda item: prepare(item.text(), item.target, pairs(item.adapters, None)),
        body.partial,
    )


def _jobs(served: Served, body: GenerateBatchRequest) -> list[Job | LorauterError]:
    shared = body.parameters.wish(is_quiet=True)

    def job(text: str | list[dict[str, str]], adapters: list[tuple[str, float]]) -> Job:
        return served.preparation.job(text, replace(shared, adapters=adapters))

    return _each(
        body.items,
        lambda item: job(item.text(), pairs(item.adapters, None) or list(shared.adapters)),
        body.partial,
    )


def _each(
    items: Sequence[Item], make: Callable[[Item], Made], is_partial: bool
) -> list[Made | LorauterError]:
    """Makes all. What is wrong with one stands in its place, or is raised and says its place."""
    made: list[Made | LorauterError] = []
    for place, item in enumerate(items):
        try:
            made.append(make(item))
        except UnprocessableRequest as error:
            if not is_partial:
                raise UnprocessableRequest(
                    error.reason, f"items.{place}: {error.message}", field=f"items.{place}"
                ) from None
            made.append(error)
    return made
