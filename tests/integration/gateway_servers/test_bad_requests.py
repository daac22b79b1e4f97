"""What clients do wrong gets the right status in the dialect of its route, whoever is behind."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorauter.routing.model import Backend
from lorauter_suite.embedded.valkey import valkey_url
from tests.integration.gateway_servers.stand import (
    Background,
    Gateway,
    TaskTexts,
    World,
    events_of,
    gateway,
    routing,
    until,
)
from tests.protocol_servers.process import running

STALL_SECONDS = float(os.environ.get("STALL_SECONDS", "2"))
"""How long a request may take, its client's stalling included; a minute shows the same."""
GROWTH_BYTES = 16 * 1024 * 1024
"""Most that a stalled client may cost the gateway; its answer is several times as long."""
TGI_ROUTES = ("/generate", "/generate_stream", "/")
OPENAI_ROUTES = ("/v1/completions", "/v1/chat/completions")
ROUTES = (*TGI_ROUTES, *OPENAI_ROUTES)
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/y.png"}}
PROMPT = "What is the word raven backwards?"


@pytest.fixture(scope="module", params=["engine", "tgi", "vllm"])
def front(
    request: pytest.FixtureRequest,
    background: Background,
    tasks: TaskTexts,
    _valkey_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A gateway in front of each kind in turn, with room for 512 tokens."""
    log = tmp_path_factory.mktemp("logs") / "log"
    with ExitStack() as stack:
        if request.param == "engine":
            url = request.getfixturevalue("engine_url")
        else:
            url = stack.enter_context(running(request.param, context=512)).url
        world = World([], {}, [Backend(request.param, request.param, url, False)])
        router = stack.enter_context(routing(background, tasks, world))
        redis_url = valkey_url(_valkey_port, 14)
        yield stack.enter_context(gateway(router.address, log, redis_url=redis_url))


def body_of(route: str, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    """Returns a good body for a route."""
    if route in TGI_ROUTES:
        return {"inputs": prompt, "parameters": {"max_new_tokens": 4}, **more}
    asked: dict[str, Any] = {"prompt": prompt}
    if "chat" in route:
        asked = {"messages": [{"role": "user", "content": prompt}]}
    return {"model": "base", "max_tokens": 4, **asked, **more}


def check_refused(route: str, answer: httpx.Response, status: int, words: str) -> None:
    """Checks that an answer says in its route's dialect what is wrong."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    if route in TGI_ROUTES:
        assert body.keys() == {"error", "error_type"}
        message, kind = body["error"], body["error_type"]
        assert kind == "validation"
    else:
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        message, kind = body["error"]["message"], body["error"]["type"]
        assert kind == "invalid_request_error"
    assert words in message
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("route", ROUTES)
def test_body_that_is_no_request_is_refused(front: Gateway, route: str) -> None:
    headers = {"content-type": "application/json"}
    for body in (b"{", b"nonsense", b"\xff\xfe", b"[" * 100_000):
        check_refused(route, front.http.post(route, content=body, headers=headers), 400, "")
    for body in (b"", b"[]", b"3", b'"text"', b"null", b"{}"):
        answer = front.http.post(route, content=body, headers=headers)
        check_refused(route, answer, 422 if route in TGI_ROUTES else 400, "")


@pytest.mark.parametrize("route", ROUTES)
def test_adapter_id_and_model_together_are_refused(front: Gateway, route: str) -> None:
    both = {"adapter_id": "one"} if route in OPENAI_ROUTES else {"model": "two"}
    body = body_of(route, **both)
    if route in TGI_ROUTES:
        body["parameters"]["adapter_id"] = "one"
    status = 422 if route in TGI_ROUTES else 400
    check_refused(route, front.post(route, body), status, "adapter_id")


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_fields_are_ignored(front: Gateway, route: str) -> None:
    plain = front.post(route, body_of(route))
    more = front.post(route, body_of(route, no_such_field={"deep": [1]}, user="me"))
    assert (plain.status_code, more.status_code) == (200, 200)
    if route not in ("/generate_stream",):
        assert text_of(more.json()) == text_of(plain.json())


def text_of(body: Any) -> str:
    """Returns the text of an answer."""
    body = body[0] if isinstance(body, list) else body
    if "generated_text" in body:
        return str(body["generated_text"])
    choice = body["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("messages", [{"role": "user", "content": [IMAGE]}]),
        ("messages", [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]),
    ],
)
def test_tools_and_images_are_refused(front: Gateway, field: str, value: Any) -> None:
    route = "/v1/chat/completions"
    for stream in (False, True):
        answer = front.post(route, body_of(route, stream=stream, **{field: value}))
        check_refused(route, answer, 400, field)


@pytest.mark.parametrize("route", ROUTES)
def test_prompt_over_the_model_s_length_is_refused(front: Gateway, route: str) -> None:
    streams: list[dict[str, Any]] = [{}] if route in TGI_ROUTES[:2] else [{"stream": False}, {"stream": True}]
    for more in streams:
        for body in (body_of(route, "word " * 2_000, **more), longer(body_of(route, **more), 5_000)):
            answer = front.post(route, body)
            check_refused(route, answer, 422 if route in TGI_ROUTES else 400, "")
            if route in OPENAI_ROUTES:
                assert answer.json()["error"]["code"] == "context_length_exceeded"


def longer(body: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Returns a body that asks for so many new tokens."""
    if "inputs" in body:
        return {**body, "parameters": {"max_new_tokens": tokens}}
    return {**body, "max_tokens": tokens}


@pytest.mark.parametrize(("kind", "route"), [("tgi", "/generate_stream"), ("vllm", "/v1/completions")])
def test_stalled_client_is_given_up_and_costs_no_memory(
    kind: str,
    route: str,
    background: Background,
    tasks: TaskTexts,
    redis_url: str,
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running(kind, context=1_000_000, answer_tokens=400_000))
        world = World([], {}, [Backend(kind, kind, server.url, False)])
        router = stack.enter_context(routing(background, tasks, world))
        settings = {"redis_url": redis_url, "lorauter_request_timeout_seconds": STALL_SECONDS}
        front = stack.enter_context(gateway(router.address, tmp_path / "log", **settings))
        front.post("/generate", {"inputs": PROMPT, "parameters": {"adapter_id": "base", "max_new_tokens": 1}})
        before = front.resident_bytes()
        body = longer(body_of(route, stream=True), 400_000)
        if route in TGI_ROUTES:
            body["parameters"]["adapter_id"] = "base"
        with stalled(front, route, body) as client:
            until(lambda: server.counters()["running"] == 1)
            begun = time.monotonic()
            most = 0
            while time.monotonic() < begun + STALL_SECONDS / 2:
                most = max(most, front.resident_bytes() - before)
                assert server.counters()["running"] == 1
            assert most < GROWTH_BYTES
            until(lambda: server.counters()["running"] == 0, seconds=STALL_SECONDS + 10)
            assert server.counters()["cancelled"] == 1
            until(lambda: front.replica(kind)["in_flight"] == 0)
            assert front.resident_bytes() - before < GROWTH_BYTES
            said = rest_of(client)
        assert not any(event.get("generated_text") for event in events_of(whole_lines(said)))
        assert front.post("/v1/completions", body_of("/v1/completions")).status_code == 200


def stalled(front: Gateway, route: str, body: dict[str, Any]) -> socket.socket:
    """Returns a connection that has asked and reads nothing."""
    request = httpx.Request("POST", front.url + route, json=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((request.url.host, request.url.port))
    client.sendall(f"POST {route} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    return client


def rest_of(client: socket.socket) -> str:
    """Returns what has been waiting for a client that reads again, up to the end of the connection."""
    client.settimeout(10)
    said = b""
    while data := client.recv(65536):
        said += data
    return said.decode(errors="replace")


def whole_lines(text: str) -> str:
    """Returns the events that came whole."""
    lines = [line for line in text.splitlines() if line.startswith("data:")]
    return "\n".join(line for line in lines if line.endswith("}"))
