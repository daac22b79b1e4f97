"""The HTTP application: OpenAI's and TGI's routes, and decisions without answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from google.protobuf.json_format import MessageToDict

from lorauter.errors import Unavailable
from lorauter.server.http import create_app
from lorauter_gateway.api.backends import backend_routes
from lorauter_gateway.api.dialects import render
from lorauter_gateway.api.openai import openai_routes
from lorauter_gateway.api.refusing import RefusesWhenFull
from lorauter_gateway.api.routing import RouteBody
from lorauter_gateway.api.streams import CallerGone
from lorauter_gateway.api.tgi import tgi_routes
from lorauter_gateway.config import Settings
from lorauter_gateway.service import Gateway

_CLIENT_CLOSED_REQUEST = 499


def create_http(gateway: Gateway, settings: Settings) -> FastAPI:
    """Returns the application; each route's errors are in its own dialect."""

    async def readiness() -> str:
        return gateway.lacking()

    app = create_app("lorauter gateway", readiness, settings.max_body_bytes, render)
    app.add_middleware(RefusesWhenFull, gateway=gateway)
    seconds = settings.request_timeout_seconds
    groups = (
        openai_routes(gateway, seconds),
        tgi_routes(gateway, seconds, settings.max_concurrent_requests),
        backend_routes(gateway),
    )
    # in front and not included as routers: finding a route would be a quarter of the way in
    app.router.routes[:0] = [route for group in groups for route in group.routes]

    @app.exception_handler(CallerGone)
    async def on_caller_gone(_: Request, __: Exception) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    @app.post("/v1/route", tags=["lorauter"])
    async def route(body: RouteBody) -> JSONResponse:
        """Decides and serves nothing; the answer is lorauter.router.v1.RouteResponse as JSON."""
        request = body.to_request()
        decision = await gateway.route(request)
        answer: dict[str, Any] = MessageToDict(
            decision, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return JSONResponse(answer, headers={"x-lorauter-decision": decision.decision_id})

    @app.get("/health", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def health() -> PlainTextResponse:
        if lacking := gateway.lacking():
            raise Unavailable("NOT_READY", lacking)
        return PlainTextResponse("")

    return app
