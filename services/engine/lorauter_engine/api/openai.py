"""OpenAI's routes in the shapes in which TGI serves them."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorauter_engine.api import wire
from lorauter_engine.api.chat import chat
from lorauter_engine.api.completions import completions
from lorauter_engine.api.openai_schemas import ChatRequest, CompletionRequest
from lorauter_engine.api.tgi import Served


def router(served: Served) -> APIRouter:
    """Returns the routes that the openai client uses."""
    routes = APIRouter(prefix="/v1")
    created = int(time.time())

    @routes.post("/chat/completions")
    async def answer_chat(request: Request) -> Response:
        return await chat(served, request, await wire.read(request, ChatRequest))

    @routes.post("/completions")
    async def complete(request: Request) -> Response:
        return await completions(served, request, await wire.read(request, CompletionRequest))

    @routes.get("/models")
    async def models() -> Response:
        model = {"id": served.model_id, "object": "model", "created": created, "owned_by": "lorauter"}
        # TGI's document has the model, TGI itself answers a list: this can be read as either
        return wire.JsonResponse({**model, "object": "list", "data": [model]})

    return routes
