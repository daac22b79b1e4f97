"""Our own routes: many prompts, each with its own weighted adapter set, in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorauter.errors import UnprocessableRequest
from lorauter_engine import metrics
from lorauter_engine.api import wire
from lorauter_engine.api.bulk_schemas import GenerateBatchRequest, ScoreRequest
from lorauter_engine.api.schemas import pairs
from lorauter_engine.api.tgi import Served
from lorauter_engine.domain.values import Job, ScoreItem

Item = TypeVar("Item")
Made = TypeVar("Made")


def router(served: Served) -> APIRouter:
    """Returns /score and /generate_batch, which matching uses."""
    routes = APIRouter()

    @routes.post("/score")
    async def score(request: Request) -> Response:
        with served.engine.admitted():
            body = await wire.read(request, ScoreRequest)
            items = await asyncio.to_thread(_score_items, served, body)
            scores = await wire.watched(request, served.engine.score(items)) if items else []
        metrics.REQUESTS.labels("/score", "success").inc()
        answers = [{"logprob": s.logprob, "tokens": s.tokens, "exact": s.exact} for s in scores]
        return wire.JsonResponse({"items": answers})

    @routes.post("/generate_batch")
    async def generate_batch(request: Request) -> Response:
        with served.engine.admitted():
            body = await wire.read(request, GenerateBatchRequest)
            jobs = await asyncio.to_thread(_jobs, served, body)
            completed = await wire.watched(request, served.engine.generate_all(jobs)) if jobs else []
        metrics.REQUESTS.labels("/generate_batch", "success").inc()
        answers = [
            {
                "generated_text": each.finish.clean_text,
                "tokens": each.finish.generated_tokens,
                "finish_reason": each.finish.reason.value,
            }
            for each in completed
        ]
        return wire.JsonResponse({"items": answers})

    return routes


def _score_items(served: Served, body: ScoreRequest) -> list[ScoreItem]:
    prepare = served.preparation.score_item
    return _each(body.items, lambda item: prepare(item.text(), item.target, pairs(item.adapters, None)))


def _jobs(served: Served, body: GenerateBatchRequest) -> list[Job]:
    shared = body.parameters.wish(is_quiet=True)

    def job(text: str | list[dict[str, str]], adapters: list[tuple[str, float]]) -> Job:
        return served.preparation.job(text, replace(shared, adapters=adapters))

    return _each(
        body.items, lambda item: job(item.text(), pairs(item.adapters, None) or list(shared.adapters))
    )


def _each(items: Sequence[Item], make: Callable[[Item], Made]) -> list[Made]:
    """Makes all; what is wrong with one is said with its place."""
    made = []
    for place, item in enumerate(items):
        try:
            made.append(make(item))
        except UnprocessableRequest as error:
            raise UnprocessableRequest(
                error.reason, f"items.{place}: {error.message}", field=f"items.{place}"
            ) from None
    return made
