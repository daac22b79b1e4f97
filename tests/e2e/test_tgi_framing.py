"""What TGI's own document does not say and its clients rely on: bytes of streams, forms of refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from lorauter_suite.suite import Addresses
from tests.e2e.conftest import engine_headers


@pytest.fixture(params=["engine", "gateway"])
def http(addresses: Addresses, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A plain client of the engine and of the gateway."""
    url, headers = {
        "engine": (addresses.engine_http, engine_headers()),
        "gateway": (addresses.gateway_http, addresses.headers),
    }[request.param]
    with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def engine(addresses: Addresses) -> Iterator[httpx.Client]:
    """A plain client of the engine."""
    headers = engine_headers()
    with httpx.Client(base_url=addresses.engine_http, headers=headers, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_stream_is_events_on_one_line_each_and_nothing_else(http: httpx.Client, path: str) -> None:
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 3}, "stream": True}
    answer = http.post(path, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert re.fullmatch(rb'(data:\{"index":[^\n]*\}\n\n){1,3}', answer.content)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_openai_stream_ends_with_done(http: httpx.Client, path: str) -> None:
    prompt = {"messages": [{"role": "user", "content": "Hello"}]} if "chat" in path else {"prompt": "Hello"}
    answer = http.post(path, json={"model": "tgi", "max_tokens": 3, "stream": True, **prompt})
    assert re.fullmatch(rb"(data: ?\{[^\n]*\}\n\n)+data: \[DONE\]\n\n", answer.content)


def test_refusals_before_any_route_have_tgi_s_form(http: httpx.Client) -> None:
    large = http.post("/generate", content=b"x" * 17 * 2**20)
    wrong = http.delete("/generate")
    assert [(each.status_code, each.json()["error_type"]) for each in (large, wrong)] == [
        (413, "validation"),
        (405, "validation"),
    ]
    assert "bytes: send less" in large.json()["error"]


def test_engine_names_its_model_as_a_list_and_as_tgi_s_document(engine: httpx.Client) -> None:
    found = engine.get("/v1/models").json()
    assert found["data"][0]["id"] == found["id"] == "lorauter/demo-base"
    assert found["object"] == "list"


def test_chat_tokens_are_those_that_a_chat_is_answered_from(engine: httpx.Client) -> None:
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    listed = engine.post("/chat_tokenize", json=chat).json()
    answer = engine.post("/v1/chat/completions", json={**chat, "max_tokens": 1})
    assert len(listed["tokenize_response"]) == answer.json()["usage"]["prompt_tokens"]
    assert "".join(token["text"] for token in listed["tokenize_response"]) == listed["templated_text"]


def test_tokens_are_cut_when_truncate_says_so(engine: httpx.Client) -> None:
    def tokens(**parameters: int) -> list[int]:
        body = {"inputs": "Hello, world", "parameters": parameters}
        answer = engine.post("/tokenize", json=body)
        return [token["id"] for token in answer.json()]

    assert tokens(truncate=2) == tokens()[-2:]
