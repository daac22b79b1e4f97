"""The HTTP server that all services share, on real sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket

import httpx
import pytest
from fastapi import FastAPI

from lorauter.server.run import serve
from lorauter.settings import ServiceSettings


async def test_answers_leave_at_once_when_they_are_small(capsys: pytest.CaptureFixture[str]) -> None:
    """Without TCP_NODELAY a body waits up to 40 ms for the acknowledgement of its headers."""
    app = FastAPI()
    app.get("/")(lambda: "here")
    serving = asyncio.create_task(serve(ServiceSettings(host="127.0.0.1", http_port=0), app))
    said: list[str] = []
    while not (ready := [line for line in said if '"ready"' in line]):
        await asyncio.sleep(0.01)
        said += capsys.readouterr().out.splitlines()
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"http://127.0.0.1:{json.loads(ready[0])['http_port']}/")
        assert response.json() == "here"
        ours = response.extensions["network_stream"].get_extra_info("client_addr")
        (accepted,) = (one for one in _sockets() if _peer(one) == ours)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


def _sockets() -> list[socket.socket]:
    return [one for one in gc.get_objects() if isinstance(one, socket.socket) and one.fileno() >= 0]


def _peer(one: socket.socket) -> object:
    try:
        return one.getpeername()
    except OSError:
        return None
