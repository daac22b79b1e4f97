"""The index process: serves what we use of Qdrant's REST interface over qdrant-client's local mode.

It keeps everything in memory: a new process is empty, and the worker publishes again from PostgreSQL.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic import Field, ValidationError
from pydantic_core import to_json
from qdrant_client import QdrantClient
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lorauter.server.http import create_app
from lorauter.server.run import serve
from lorauter.settings import ServiceSettings
from lorauter.telemetry import configure_logging, get_logger
from lorauter_suite.embedded.index_calls import CALLS, Call

_log = get_logger(__name__)


class IndexSettings(ServiceSettings):
    """Settings of the index process."""

    max_body_bytes: int = Field(
        64 * 1024 * 1024, ge=32 * 1024 * 1024, description="Largest request that is read, in bytes."
    )


def create_index_app(max_body_bytes: int) -> FastAPI:
    """Returns the application over an empty index of its own."""
    client = QdrantClient(":memory:", force_disable_check_same_thread=True)
    lock = threading.Lock()

    async def ready() -> str:
        return ""

    async def root(_: Request) -> Response:
        return JSONResponse({"title": "lorauter index", "version": version("qdrant-client"), "commit": None})

    app = create_app("lorauter index", ready, max_body_bytes)
    app.router.routes.append(Route("/", root))
    for method, path, call in CALLS:
        app.router.routes.append(Route(path, _endpoint(call, client, lock), methods=[method]))
    return app


def _endpoint(
    call: Call, client: QdrantClient, lock: threading.Lock
) -> Callable[[Request], Awaitable[Response]]:
    def answer(path: dict[str, Any], body: bytes) -> Response:
        begin = time.perf_counter()
        try:
            with lock:
                result = call(client, path, body)
        except Exception as error:
            return _failure(error)
        seconds = time.perf_counter() - begin
        document = {"result": result, "status": "ok", "time": seconds}
        return Response(to_json(document, fallback=_plain), media_type="application/json")

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(answer, request.path_params, await request.body())

    return endpoint


def _failure(error: Exception) -> Response:
    """Returns Qdrant's form of an error; the local client tells them apart by their words alone."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return _error(400, f"Format error in JSON body: {where}: {first['msg']}")
    if isinstance(error, ValueError | KeyError | TypeError | AssertionError):
        words = str(error)
        if words.startswith("Collection ") and words.endswith("not found"):
            return _error(404, f"Not found: {words}")
        said = words.removeprefix("Wrong input: ")
        return _error(409 if words.endswith("already exists") else 400, f"Wrong input: {said}")
    _log.error("index.call.failed", exc_info=error)
    return _error(500, "Service internal error: the index process's log has it")


def _error(status: int, words: str) -> Response:
    return JSONResponse({"status": {"error": words}, "time": 0.0}, status_code=status)


def _plain(value: Any) -> Any:
    """Turns the numpy values of the local client into JSON's."""
    return value.tolist()


def main() -> None:
    """Serves an empty index until a signal."""
    settings = IndexSettings.load()
    configure_logging("index", settings.log_level, settings.log_format)
    asyncio.run(serve(settings, create_index_app(settings.max_body_bytes)))


if __name__ == "__main__":
    main()
