"""OpenAI's chat completions, completions and models."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lorauter.access import caller
from lorauter.errors import InvalidArgument
from lorauter_gateway.api.bodies import BodyRoute
from lorauter_gateway.api.dialects import openai_error_event
from lorauter_gateway.api.headers import serving_headers
from lorauter_gateway.api.openai_answers import ChatShape, CompletionShape, Shape
from lorauter_gateway.api.openai_bodies import ChatBody, CompletionBody, SamplingBody
from lorauter_gateway.api.routing import routing_request
from lorauter_gateway.api.streams import EventStream, event, while_connected
from lorauter_gateway.domain.model import Generation, Prompt
from lorauter_gateway.domain.stops import StopTrimmer, without_stop
from lorauter_gateway.domain.target import parse_target, unknown_model
from lorauter_gateway.service import Gateway, OpenStream


def openai_routes(gateway: Gateway, timeout_seconds: float) -> APIRouter:
    """Returns the routes under /v1."""
    routes = APIRouter(tags=["OpenAI"], route_class=BodyRoute)

    async def answer(request: Request, body: SamplingBody, prompt: Prompt, shape: Shape) -> Response:
        if not body.model:
            raise InvalidArgument(
                "MISSING_FIELD", "model: name 'auto', an adapter or the base", field="model"
            )
        generation = Generation(
            prompt,
            parse_target(body.model, gateway.pools(caller())),
            body.sampling(),
            timeout_seconds,
            caller(),
            routing_request(body.lorauter),
        )
        if body.stream:
            stream = await while_connected(request, gateway.stream(generation, shape.route))
            has_usage = bool(body.stream_options and body.stream_options.include_usage)
            events = _events(stream, shape, generation.sampling.stop, has_usage)
            return EventStream(stream, events, openai_error_event, serving_headers(stream.serving))
        answered, serving = await while_connected(request, gateway.generate(generation, shape.route))
        text = without_stop(answered.text, generation.sampling.stop)
        return JSONResponse(shape.whole(text, answered, serving.model), headers=serving_headers(serving))

    @routes.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Answers a conversation. ``model`` says what answers; the response's ``model`` what did."""
        return await answer(request, body, body.prompt(), ChatShape())

    @routes.post("/v1/completions")
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Continues a text. ``model`` says what answers; the response's ``model`` what did."""
        return await answer(request, body, body.text(), CompletionShape())

    @routes.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """Lists what ``model`` can be: ``auto``, the pools, the base models, the adapters."""
        owners = await _owners(gateway)
        return {"object": "list", "data": [_model(name, owner) for name, owner in owners.items()]}

    @routes.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        """Returns one of them."""
        owners = await _owners(gateway)
        if name not in owners:
            raise unknown_model(name)
        return _model(name, owners[name])

    return routes


async def _events(
    stream: OpenStream, shape: Shape, stop: tuple[str, ...], has_usage: bool
) -> AsyncIterator[str]:
    model = stream.serving.model
    trimmer = StopTrimmer(stop)
    yield event(shape.first(model, has_usage))
    async for piece in stream:
        text = trimmer.push(piece.text)
        if piece.finish is not None:
            text += trimmer.finish()
        if text:
            yield event(shape.piece(text, model, has_usage))
        if piece.finish is not None:
            yield event(shape.last(piece.finish, model, has_usage))
            if has_usage:
                yield event(shape.usage(piece.finish, model))
    yield "data: [DONE]\n\n"


async def _owners(gateway: Gateway) -> dict[str, str]:
    who = caller()
    pools = gateway.pools(who)
    owners = {"auto": "lorauter", **{f"auto:{pool.pool}": pool.pool for pool in pools}}
    owners |= {pool.base_model: pool.pool for pool in pools}
    return owners | {found.adapter_id: found.pool for found in await gateway.router.adapters(who.tenant)}


def _model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(time.time()), "owned_by": owner}
