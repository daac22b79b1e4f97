"""What both kinds of server share: routes for tests, streams, and the life of a process."""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from tests.protocol_servers.faults import Fault, Faults, Ledger, Play, request_id_of
from tests.protocol_servers.models import EngineModel, HashModel, Model, ModelFailed, Token
from tests.protocol_servers.weights import modules_of

Body = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Generating = Callable[[web.Request, Body, Play], Awaitable[web.StreamResponse]]
_BOMB_BYTES = 32 * 1024 * 1024
_PACKED = {"content-encoding": "gzip"}
_MAX_BODY_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Words:
    """What a dialect makes of a stream: events of a token, the event of a failure, and what ends it."""

    render: Callable[[Token], list[dict[str, Any]]]
    failed: Callable[[ModelFailed], dict[str, Any]]
    last: bytes = b"data: [DONE]\n\n"


class Server(ABC):
    """A server of a kind. A subclass gives its routes and its words for what goes wrong."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model_id: str = options.model_id
        self.context: int = options.context
        self.modules = modules_of(options.model)
        self.started = int(time.time())
        self.faults = Faults(Fault(token_seconds=options.token_seconds))
        self.ledger = Ledger(Path(options.journal) if options.journal else None)
        self.model: Model
        self.generating: Mapping[str, Generating] = {}

    @abstractmethod
    def add_routes(self, routes: web.UrlDispatcher) -> None:
        """Adds what does not generate."""

    @abstractmethod
    def malformed(self, message: str) -> web.Response:
        """Returns the answer to a body that is not JSON."""

    @abstractmethod
    def refusal(self, status: int) -> web.Response:
        """Returns the answer of a server that fails with ``status``."""

    @abstractmethod
    def guards(self, request: web.Request) -> bool:
        """Returns whether --api-key asks this request for the key."""

    @abstractmethod
    def unauthorized(self) -> web.Response:
        """Returns the answer to a request without the key."""

    def counters(self) -> dict[str, Any]:
        """Returns what GET /counters answers."""
        return self.ledger.as_json()

    async def start(self) -> None:
        """Begins to work."""
        options = self.options
        self.model = (
            EngineModel(options.engine) if options.engine else HashModel(self.context, options.answer_tokens)
        )

    def application(self) -> web.Application:
        """Returns all routes."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._checked])
        for path in self.generating:
            app.router.add_post(path, self._generate)
        self.add_routes(app.router)
        app.router.add_get("/counters", self._counters)
        app.router.add_post("/faults", self._set_faults)
        return app

    @web.middleware
    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """--api-key, where the kind asks for it."""
        key = self.options.api_key
        if key and self.guards(request) and request.headers.get("authorization") != f"Bearer {key}":
            return self.unauthorized()
        return await handler(request)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            return self.malformed(str(error))
        fault = self.faults.take()
        if fault.status is not None:
            return self.refusal(fault.status)
        if fault.garbage:
            return web.Response(text="<html>", content_type="text/html")
        if fault.packed:
            return web.Response(
                body=gzip.compress(bytes(_BOMB_BYTES)), content_type="application/json", headers=_PACKED
            )
        if not isinstance(body, dict):
            return self.malformed("invalid type: expected a map")
        return await self.generating[request.path](
            request, body, Play(self.ledger, request, fault, request_id_of(body))
        )

    async def _counters(self, _: web.Request) -> web.Response:
        return web.json_response(self.counters())

    async def _set_faults(self, request: web.Request) -> web.Response:
        self.faults.set(await request.json())
        return web.Response()


async def streamed(
    request: web.Request,
    headers: Mapping[str, str],
    play: Play,
    tokens: AsyncGenerator[Token, None],
    words: Words,
) -> web.StreamResponse:
    """Sends tokens as they come."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
    await response.prepare(request)
    try:
        async with aclosing(tokens):
            async for token in tokens:
                await response.write(b"".join(map(data, words.render(token))))
                play.sent()
    except ModelFailed as error:
        await response.write(data(words.failed(error)))
    if words.last:
        await response.write(words.last)
    await response.write_eof()
    return response


def data(event: object) -> bytes:
    """Returns an event of a stream."""
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def held_back(text: str, stops: list[str]) -> int:
    """Returns how many characters at the end of ``text`` may be the beginning of a stop text."""
    for size in range(min(len(text), max(map(len, stops), default=0)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0


def without_stop(text: str, stops: list[str]) -> str:
    """Returns the text up to the first stop text."""
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def arguments(name: str) -> argparse.ArgumentParser:
    """Returns the options that all kinds have."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--model-id", default="lorauter/demo-base", help="the base model's name")
    parser.add_argument("--model", default="", help="folder of the base, whose layers adapters must match")
    parser.add_argument("--engine", default="", help="URL of an engine whose model answers; else hashes do")
    parser.add_argument("--context", type=int, default=4096, help="tokens of prompt and answer")
    parser.add_argument("--answer-tokens", type=int, default=0, help="length of answers from hashes")
    parser.add_argument("--token-seconds", type=float, default=0.0, help="pause before each token")
    parser.add_argument("--start-seconds", type=float, default=0.0, help="how long it takes to start")
    parser.add_argument("--api-key", default="", help="what callers must send as a bearer token")
    parser.add_argument("--journal", default="", help="file that events are appended to")
    return parser


def run(make: Callable[[], Server]) -> None:
    """Runs a server until SIGTERM; prints one line of JSON once it listens."""
    uvloop.run(_serve(make))


async def _serve(make: Callable[[], Server]) -> None:
    server = make()
    options = server.options
    await server.start()
    await asyncio.sleep(options.start_seconds)
    runner = web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.5
    )
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port, reuse_address=True, backlog=1024)
    await site.start()
    port = runner.addresses[0][1]
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    print(json.dumps({"ready": True, "url": f"http://{options.host}:{port}"}), flush=True)
    try:
        await ended.wait()
    finally:
        await runner.cleanup()
        await server.model.close()
