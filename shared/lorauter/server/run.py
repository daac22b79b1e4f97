"""Runs a service's gRPC and HTTP servers on one event loop until a signal, then drains."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import sys
from contextlib import AbstractContextManager, nullcontext

import uvicorn
from fastapi import FastAPI

from lorauter.server.grpc import GrpcServer
from lorauter.server.tls import ServerTls
from lorauter.server.traces import http_traces
from lorauter.settings import ServiceSettings
from lorauter.telemetry import get_logger

_log = get_logger(__name__)

_COLLECT_AT = (5_000, 20, 20)
"""Python's own thresholds are for programs without traffic: they collect every few requests."""


async def serve(
    settings: ServiceSettings, app: FastAPI | None = None, grpc_server: GrpcServer | None = None
) -> None:
    """Serves until SIGTERM or SIGINT.

    Once both listen it prints one line of JSON, ``{"ready": true, "grpc_port": …, "http_port": …}``, to
    stdout. Running calls then have ``settings.drain_seconds`` to finish.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    ready: dict[str, object] = {"ready": True}
    tls = settings.server_tls()
    if grpc_server is not None:
        ready["grpc_port"] = await grpc_server.start(settings.host, settings.grpc_port, tls)
    http: _HttpServer | None = None
    if app is not None:
        http = _HttpServer(app, settings, tls)
        ready["http_port"] = http.port
        await http.start()
    if grpc_server is not None:
        await grpc_server.set_serving(True)
    _settle()
    _log.info("server.started", **{k: v for k, v in ready.items() if k != "ready"})
    print(json.dumps(ready), flush=True)
    await stop.wait()
    _log.info("server.draining", seconds=settings.drain_seconds)
    if grpc_server is not None:
        await grpc_server.stop(settings.drain_seconds)
    if http is not None:
        await http.stop()


def _settle() -> None:
    """Spares collections all that was made while starting: looking through it stops answers for 0.2 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AT)


class _HttpServer:
    def __init__(self, app: FastAPI, settings: ServiceSettings, tls: ServerTls | None) -> None:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((settings.host, settings.http_port))
        except OSError as error:
            print(
                f"LORAUTER_HTTP_PORT: cannot listen on {settings.host}:{settings.http_port}: {error}",
                file=sys.stderr,
            )
            raise SystemExit(2) from None
        self.port = int(self._socket.getsockname()[1])
        self._server = _Uvicorn(
            uvicorn.Config(
                http_traces(app),
                log_config=None,
                access_log=False,
                proxy_headers=False,
                timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
                lifespan="on",
                ssl_context_factory=(lambda *_: tls.context()) if tls else None,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise SystemExit(1)
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Uvicorn(uvicorn.Server):
    """Leaves signals to serve(), which drains gRPC and HTTP together."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()
