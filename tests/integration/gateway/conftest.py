"""A gateway on real ports, between protocol peers.

The peers stand for a router and an engine only in what the real ones cannot be made to do on demand:
answer slowly, refuse, break off. The real ones are behind the gateway in tests/e2e.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from lorauter import AsyncClient
from lorauter.canary import CANARY_TEXT
from lorauter.client import NO_RETRY
from lorauter.errors import FailedPrecondition, NotFound
from lorauter.router.v1 import router_pb2, router_pb2_grpc
from lorauter.server.access import Gate, OpenGate
from lorauter.server.grpc import GrpcServer
from lorauter.server.traces import http_traces
from lorauter_gateway.api.http import create_http
from lorauter_gateway.config import Settings
from lorauter_gateway.main import assembled, grpc_server

DIGESTS = {"adds": "sha256:" + "a" * 64, "2adds": "sha256:" + "b" * 64}
WORDS = ("Hello", " wor", "ld")


class RouterPeer(router_pb2_grpc.RouterServiceServicer):
    """Speaks the router's protocol and decides what it is told to."""

    def __init__(self) -> None:
        self.decision = router_pb2.RouteResponse(
            decision_id="d1",
            pool="demo",
            tenant="default",
            action=router_pb2.ROUTE_ACTION_ADAPTERS,
            adapters=[
                router_pb2.WeightedAdapter(adapter_id=name, version=1, weight=weight, digest=DIGESTS[name])
                for name, weight in (("adds", 0.62), ("2adds", 0.38))
            ],
            best_single=router_pb2.BestSingle(adapter_id="adds", version=1, digest=DIGESTS["adds"]),
            measured=True,
        )
        self.backends: list[router_pb2.Backend] = []
        self.requests: list[router_pb2.RouteRequest] = []
        self.pools = ["demo"]
        self.recalled: set[str] = set()

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:
        self.requests.append(request)
        return self.decision

    async def GetSnapshot(self, request: Any, context: Any) -> router_pb2.GetSnapshotResponse:
        pools = [
            router_pb2.PoolSnapshot(
                pool=name,
                tenant="default",
                base_model=f"lorauter/{name}-base",
                base_model_aliases=[f"{name}-alias"],
                backends=self.backends,
            )
            for name in self.pools
        ]
        return router_pb2.GetSnapshotResponse(generation="g" + "0" * 16, pools=pools)

    async def ResolveAdapter(self, request: router_pb2.ResolveAdapterRequest, context: Any) -> Any:
        name, _, version = request.adapter.partition("@")
        if name == "retired":
            raise FailedPrecondition("ADAPTER_RETIRED", "retired: use adds", successor="adds")
        if name not in DIGESTS.keys() - self.recalled or request.pool not in ("demo", ""):
            raise NotFound("UNKNOWN_ADAPTER", f"adapter {name!r} does not exist in pool {request.pool!r}")
        return router_pb2.ResolveAdapterResponse(
            pool="demo", adapter_id=name, version=int(version or 1), digest=DIGESTS[name]
        )

    async def ListServableAdapters(self, request: Any, context: Any) -> Any:
        adapters = [
            router_pb2.ResolveAdapterResponse(pool="demo", adapter_id=name, version=1, digest=digest)
            for name, digest in DIGESTS.items()
        ]
        return router_pb2.ListServableAdaptersResponse(adapters=adapters)


class EnginePeer:
    """Speaks the engine's protocol. ``script`` holds what to do with the next requests, then it answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = ""
        self.script: deque[str | tuple[int, str, str]] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.words = WORDS
        self.readings: list[list[str]] = []
        self.without_effect: set[str] = set()
        self.retry_after = "3"
        self.concurrency = 0
        self.finish_reason = "eos_token"
        self.stopped = asyncio.Event()
        self.begun = asyncio.Event()
        self.is_healthy = True
        self.app = FastAPI()
        self.app.add_api_route("/health", self.health)
        self.app.add_api_route("/info", self.info)
        for path in ("/generate", "/generate_stream", "/v1/chat/completions"):
            self.app.add_api_route(path, self.generate, methods=["POST"])

    async def health(self) -> Response:
        return PlainTextResponse("", 200 if self.is_healthy else 503)

    async def info(self) -> dict[str, Any]:
        limits = {"max_input_tokens": 100, "max_total_tokens": 200}
        return {"model_id": "m", **limits, "max_concurrent_requests": self.concurrency}

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        if body.get("inputs") == CANARY_TEXT:
            return self._reading(body["parameters"]["adapters"])
        self.bodies.append(body)
        self.paths.append(request.url.path)
        self.headers.append(dict(request.headers))
        self.begun.set()
        step = self.script.popleft() if self.script else "answer"
        if isinstance(step, tuple):
            status, error_type, message = step
            headers = {"retry-after": self.retry_after}
            return JSONResponse({"error": message, "error_type": error_type}, status, headers)
        is_chat = request.url.path.startswith("/v1")
        if is_chat:
            lines, whole = self._chat_lines(), self._chat_answer()
        else:
            lines, whole = self._lines(), self._answer()
        if request.url.path == "/generate_stream" or body.get("stream"):
            return StreamingResponse(self._played(step, lines), media_type="text/event-stream")
        if step == "hang":
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.stopped.set()
        if step == "garbage":
            return PlainTextResponse("<html>")
        return JSONResponse(whole, headers={"x-prompt-tokens": "5"})

    def _reading(self, adapters: list[dict[str, Any]]) -> Response:
        self.readings.append([adapter["id"] for adapter in adapters])
        added = sum(adapter["weight"] for adapter in adapters if adapter["id"] not in self.without_effect)
        prefill = [
            {"id": n, "text": "x", "logprob": -1.0 - 0.1 * added * (n % 3) if n else None} for n in range(40)
        ]
        details = {**self._details(), "prefill": prefill, "tokens": []}
        return JSONResponse({"generated_text": "x", "details": details})

    async def _played(self, step: str, lines: list[str]) -> AsyncIterator[str]:
        yield ": keep-alive\n\n"
        try:
            if step == "endless":
                while True:
                    yield lines[0]
                    await asyncio.sleep(0.005)
            if step == "hang":
                await asyncio.Event().wait()
            for line in _broken(step, lines):
                yield line
                await asyncio.sleep(0)
            if step == "break":
                raise ConnectionResetError
        except asyncio.CancelledError:
            self.stopped.set()
            raise

    def _details(self) -> dict[str, Any]:
        return {"finish_reason": self.finish_reason, "generated_tokens": len(self.words), "seed": None}

    def _answer(self) -> dict[str, Any]:
        tokens = [{"id": n, "text": w, "logprob": -0.1, "special": False} for n, w in enumerate(self.words)]
        details = {**self._details(), "prefill": [], "tokens": tokens}
        return {"generated_text": "".join(self.words), "details": details}

    def _lines(self) -> list[str]:
        lines = []
        for index, word in enumerate(self.words, 1):
            is_last = index == len(self.words)
            event = {
                "index": index,
                "token": {"id": index, "text": word, "logprob": -0.1, "special": False},
                "generated_text": "".join(self.words) if is_last else None,
                "details": {**self._details(), "input_length": 5} if is_last else None,
            }
            lines.append(_data(event))
        return lines

    def _chat_answer(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": len(self.words)}}

    def _chat_lines(self) -> list[str]:
        chunks: list[dict[str, Any]] = [{"choices": [{"delta": {"content": word}}]} for word in self.words]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(self.words)}})
        return [*map(_data, chunks), "data: [DONE]\n\n"]


def _broken(step: str, lines: list[str]) -> list[str]:
    """Returns what is left of an answer's events where ``step`` is a fault."""
    return {
        "overloaded event": [_data({"error": "Model is overloaded", "error_type": "overloaded"})],
        "error event": [*lines[:2], _data({"error": "CUDA", "error_type": "generation"})],
        "short": lines[:2],
        "break": lines[:2],
        "garbage": ["data: {\n\n"],
    }.get(step, lines)


def _data(event: object) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


class _Quiet(uvicorn.Server):
    """Leaves signals alone, and ends without waiting for its next look at the clock."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.end = asyncio.Event()
        self.up = asyncio.Event()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def main_loop(self) -> None:
        self.up.set()
        await self.end.wait()

    async def shutdown(self, sockets: object = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for task in list(self.server_state.tasks):
            task.cancel()
        await self.lifespan.shutdown()


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """Serves an application on a free port; yields its url."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = _Quiet(config)
    task = asyncio.create_task(server.serve())
    await asyncio.wait_for(server.up.wait(), 30)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.end.set()
        await task


class Stand:
    """A running gateway with its peers."""

    def __init__(self, router: RouterPeer, engines: list[EnginePeer]) -> None:
        self.router = router
        self.engines = engines
        self.url = ""
        self.http = httpx.AsyncClient()
        self.client = AsyncClient()
        self.stop_router: Callable[[], Any] = lambda: None

    @property
    def engine(self) -> EnginePeer:
        return self.engines[0]

    async def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        return await self.http.post(self.url + path, json=body, timeout=20, **options)

    async def metric(self, name: str, **labels: str) -> float:
        text = (await self.http.get(self.url + "/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return next((s.value for s in samples if s.name == name and s.labels == labels), 0.0)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Polls until ``holds()``, for at most 5 s."""
        async with asyncio.timeout(5):
            while not await holds():  # noqa: ASYNC110  -- what is awaited lies behind a socket
                await asyncio.sleep(0.01)

    async def is_ready(self) -> bool:
        return (await self.http.get(self.url + "/readyz")).status_code == 200

    async def until_engine_stopped(self) -> None:
        await asyncio.wait_for(self.engine.stopped.wait(), 30)


@asynccontextmanager
async def standing(engines: int = 1, gate: Gate | None = None, **settings: Any) -> AsyncIterator[Stand]:
    """Starts a gateway with ``engines`` backends, open to everybody unless ``gate`` lets callers in."""
    peers = [EnginePeer(f"engine-{number}") for number in range(engines)]
    stand = Stand(RouterPeer(), peers)  # type: ignore[abstract]
    async with AsyncExitStack() as stack:
        for engine in stand.engines:
            engine.url = await stack.enter_async_context(listening(engine.app))
            stand.router.backends.append(
                router_pb2.Backend(backend_id=engine.name, kind="engine", url=engine.url)
            )
        server = GrpcServer()
        router_pb2_grpc.add_RouterServiceServicer_to_server(stand.router, server.server)
        router_port = await server.start("127.0.0.1", 0)
        stand.stop_router = lambda: server.server.stop(0)
        stack.push_async_callback(server.server.stop, 0)
        options = {"access": "open", "snapshot_poll_seconds": 0.02, "probe_seconds": 0.05, **settings}
        config = Settings(router_address=f"127.0.0.1:{router_port}", **options)
        gateway = await stack.enter_async_context(assembled(config))
        gate = gate or OpenGate(config.tenant)
        app = http_traces(create_http(gateway, config, gate))
        stand.url = await stack.enter_async_context(listening(app))
        grpc = grpc_server(gateway, config, gate)
        port = await grpc.start("127.0.0.1", 0)
        stack.push_async_callback(grpc.stop, 0)
        stand.client = await stack.enter_async_context(
            AsyncClient(gateway=f"127.0.0.1:{port}", retry=NO_RETRY)
        )
        stand.http = await stack.enter_async_context(httpx.AsyncClient())
        await stand.until(stand.is_ready)
        yield stand


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    """A gateway with one backend."""
    async with standing() as found:
        yield found


@pytest.fixture
async def pair() -> AsyncIterator[Stand]:
    """A gateway with two backends."""
    async with standing(engines=2) as found:
        yield found


@pytest.fixture
def start() -> Callable[..., Any]:
    """Starts a gateway with settings of the test's choice."""
    return standing
