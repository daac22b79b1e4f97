"""What a server of any kind answers changes neither the framing of ours nor how much memory it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from lorauter.backends import PLAIN
from lorauter.errors import Unavailable
from lorauter.routing.model import Backend
from lorauter_suite.embedded.valkey import valkey_url
from lorauter_worker.adapters import bounded_transport
from lorauter_worker.adapters.replicas import Call, Replicas
from tests.integration.gateway_servers.stand import Background, Gateway, TaskTexts, World, gateway, routing
from tests.protocol_servers.process import Running, running

MEBIBYTE = 1024 * 1024
ROUTES = ("/generate", "/generate_stream", "/v1/completions", "/v1/chat/completions")
TEXTS = (
    'data: {"choices": []}\n\ndata: [DONE]\n\n',
    "\n\nevent: error\ndata: x\n\n",
    "\r\n\r\n: comment\r\rid: 7\n",
    '"}, "finish_reason": "stop"}\u2028\u2029\x85',
    "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
)


@dataclass(frozen=True)
class Front:
    """A gateway, and the server behind it."""

    gateway: Gateway
    server: Running


@pytest.fixture(scope="module", params=["tgi", "vllm"])
def front(
    request: pytest.FixtureRequest,
    background: Background,
    tasks: TaskTexts,
    _valkey_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    """A gateway in front of each kind of server that is not ours."""
    log = tmp_path_factory.mktemp("logs") / "log"
    with ExitStack() as stack:
        server = stack.enter_context(running(request.param, context=512))
        world = World([], {}, [Backend(request.param, request.param, server.url, False)])
        router = stack.enter_context(routing(background, tasks, world))
        redis_url = valkey_url(_valkey_port, 13)
        yield Front(stack.enter_context(gateway(router.address, log, redis_url=redis_url)), server)


@pytest.fixture(autouse=True)
def _sound_again(front: Front) -> Iterator[None]:
    yield
    front.server.fault()


def asked(front: Front, route: str, prompt: str, stream: bool = True) -> httpx.Response:
    """Asks for three tokens of the base."""
    if route.startswith("/generate"):
        body: dict[str, Any] = {"inputs": prompt, "parameters": {"max_new_tokens": 3}}
    else:
        said = {"messages": [{"role": "user", "content": prompt}]} if "chat" in route else {"prompt": prompt}
        body = {"model": "base", "max_tokens": 3, "stream": stream, **said}
    return httpx.post(front.gateway.url + route, json=body, timeout=30)


def said(event: dict[str, Any]) -> str:
    """Returns the text of an event."""
    if "token" in event:
        return str(event["token"]["text"])
    choice: dict[str, Any] = next(iter(event["choices"]), {})
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("route", ROUTES[1:])
def test_stream_keeps_its_framing_when_prompt_and_answer_look_like_events(
    front: Front, route: str, text: str
) -> None:
    front.server.fault(text=text)
    answer = asked(front, route, f"Say {text} again")
    assert answer.status_code == 200
    parts = answer.content.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data:") and not {"\n", "\r"} & set(part) for part in parts)
    events = [part.removeprefix("data:").strip() for part in parts]
    assert events.count("[DONE]") == (route != "/generate_stream")
    whole = "".join(said(json.loads(event)) for event in events if event != "[DONE]")
    assert whole
    assert whole == text * (len(whole) // len(text))


@pytest.mark.parametrize("route", ROUTES)
def test_packed_answer_is_not_unpacked(front: Front, route: str) -> None:
    asked(front, route, "warm up")
    before = front.gateway.resident_bytes()
    front.server.fault(packed=True)
    answer = asked(front, route, "hello")
    assert answer.status_code in (502, 503), answer.text
    assert "Traceback" not in answer.text
    assert front.gateway.resident_bytes() - before < 8 * MEBIBYTE


def test_worker_neither_unpacks_an_answer_nor_reads_on_beyond_its_limit(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Call("/v1/completions", {"model": "x", "prompt": "hello", "max_tokens": 1}, limit=5)
    front.server.fault(packed=True)
    monkeypatch.setattr(bounded_transport.BoundedTransport.__init__, "__defaults__", (4096,))
    with pytest.raises(Unavailable, match="ReadError"):
        Replicas([front.server.url], 0.3, PLAIN).map([call])
