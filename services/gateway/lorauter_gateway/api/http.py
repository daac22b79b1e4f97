"""The HTTP application: OpenAI's and TGI's routes, and decisions without answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from google.protobuf.json_format import MessageToDict

from lorauter.access import Scope, caller
from lorauter.errors import Unavailable
from lorauter.server.access import Gate
from lorauter.server.http import HttpAccess, create_app
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


SCOPES = {
    **dict.fromkeys(("/", "/generate", "/generate_stream", "/info", "/v1/route"), Scope.INVOKE),
    **dict.fromkeys(("/v1/chat/completions", "/v1/completions", "/v1/models"), Scope.INVOKE),
    "/v1/backends": Scope.READ,
}
"""What the routes ask for; there is one test that none is forgotten."""

_MODEL = "/v1/models/"


def scope_for(method: str, path: str) -> Scope:
    """Returns what a request asks for; a good key is needed to learn that there is no such route."""
    return SCOPES.get(path, Scope.INVOKE if path.startswith(_MODEL) else Scope.ANY)


def create_http(gateway: Gateway, settings: Settings, gate: Gate) -> FastAPI:
    """Returns the application for those whom ``gate`` lets in; each route's errors are in its own dialect."""

    async def readiness() -> str:
        return gateway.lacking()

    app = create_app("lorauter gateway", readiness, settings.max_body_bytes, render)
    app.add_middleware(RefusesWhenFull, gateway=gateway)
    # outside of it: what is full is told to those only who may see it
    app.add_middleware(HttpAccess, gate=gate, scope_for=scope_for, render=render)
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
        decision, quota = await gateway.route(body.to_request(), caller())
        answer: dict[str, Any] = MessageToDict(
            decision, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return JSONResponse(answer, headers={"x-lorauter-decision": decision.decision_id, **quota})

    @app.get("/health", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def health() -> PlainTextResponse:
        if lacking := gateway.lacking():
            raise Unavailable("NOT_READY", lacking)
        return PlainTextResponse("")

    return app
