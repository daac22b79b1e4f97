"""The engine's HTTP application."""

from __future__ import annotations

from fastapi import FastAPI

from lorauter.errors import LorauterError
from lorauter.server.http import create_app
from lorauter_engine.api import bulk, openai, tgi, wire
from lorauter_engine.api.keys import RequiresKey
from lorauter_engine.api.tgi import Served


def application(served: Served, max_body_bytes: int, key: str = "") -> FastAPI:
    """Returns all routes; errors have TGI's form. Callers need the ``key`` unless it is empty."""

    async def readiness() -> str:
        return "" if served.engine.is_alive() else "the scheduler has stopped"

    app = create_app("lorauter engine", readiness, max_body_bytes, wire.render, openapi_url=None)
    for kind in (LorauterError, wire.ClientGone, Exception):
        app.add_exception_handler(kind, wire.on_error)
    for routes in (tgi.router(served), openai.router(served), bulk.router(served)):
        app.include_router(routes)
    if key:
        app.add_middleware(RequiresKey, key=key)
    return app
