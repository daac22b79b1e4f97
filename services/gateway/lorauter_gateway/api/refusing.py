"""Refuses generations before they are read, where there is no room whatever they ask for, and no quota."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from lorauter.access import caller
from lorauter.errors import Exhausted
from lorauter_gateway.api.dialects import render
from lorauter_gateway.service import Gateway

_ROUTES = {
    "/v1/chat/completions": "openai.chat",
    "/v1/completions": "openai.completions",
    "/generate": "tgi",
    "/generate_stream": "tgi",
    "/": "tgi",
}
"""Paths of generations, and what they are called in metrics."""


class RefusesWhenFull:
    """Answers 429 at once: who is offered too much has to refuse most of it, so that must be cheap."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self.app = app
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _ROUTES:
            try:
                self.gateway.check_open(_ROUTES[scope["path"]], caller())
            except Exhausted as full:
                answer = render(full.http_status, full.reason, full.message, full.metadata, scope["path"])
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)
