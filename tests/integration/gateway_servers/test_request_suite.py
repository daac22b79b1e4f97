"""The same requests through each driver: the clients that people have, streaming and not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import InferenceClient, constants
from openai import NotFoundError, OpenAI

from lorauter import Client
from lorauter_suite.embedded.valkey import valkey_url
from tests.integration.gateway_servers.conftest import TASKS, Shelf
from tests.integration.gateway_servers.servers import (
    KINDS,
    OWN,
    Target,
    demo_target,
    own_target,
    text_of,
)
from tests.integration.gateway_servers.stand import Background, TaskTexts, events_of

TOKENS = 16
DEMO_ONLY = [] if OWN else ["demo"]


@pytest.fixture(scope="module", params=KINDS)
def target(
    request: pytest.FixtureRequest,
    demo_shelf: Shelf,
    background: Background,
    tasks: TaskTexts,
    _valkey_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Target]:
    """A gateway in front of each kind in turn."""
    kind, redis_url = request.param, valkey_url(_valkey_port, 15)
    log = tmp_path_factory.mktemp("logs") / f"{kind}.log"
    if OWN:
        with own_target(kind, background, tasks, redis_url, log) as made:
            yield made
    else:
        engine_url = request.getfixturevalue("engine_url")
        with demo_target(kind, demo_shelf, engine_url, background, tasks, redis_url, log) as made:
            yield made


@pytest.fixture
def openai(target: Target) -> Iterator[OpenAI]:
    """OpenAI's client."""
    with OpenAI(base_url=f"{target.gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def hub(target: Target, monkeypatch: pytest.MonkeyPatch) -> InferenceClient:
    """huggingface_hub's client, which is TGI's."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # offline, it calls no URL at all
    return InferenceClient(model=target.gateway.url, timeout=60)


@pytest.fixture(params=TASKS)
def query(request: pytest.FixtureRequest, queries: dict[str, list[str]]) -> tuple[str, str]:
    """A task and a query of it."""
    return request.param, queries[request.param][0]


def chat(text: str) -> Any:
    return [{"role": "user", "content": text}]


def wanted(target: Target, prompt: Any, adapter: str) -> str:
    """Returns what the server itself says."""
    return text_of(target.ask(prompt, adapter, TOKENS))


def test_openai_completion_is_routed_streamed_or_not(
    target: Target, openai: OpenAI, query: tuple[str, str]
) -> None:
    task, text = query
    ask: dict[str, Any] = {"model": "auto", "prompt": text, "max_tokens": TOKENS}
    raw = openai.completions.with_raw_response.create(**ask)
    answer = raw.parse()
    adapter = target.best[task]
    assert answer.choices[0].text == wanted(target, text, adapter)
    assert answer.model == (adapter or target.base)
    assert raw.headers["x-lorauter-composition"] == ("single" if adapter else "base")
    assert raw.headers["x-lorauter-adapters"] == f"{adapter or 'base'};w=1.0"
    assert raw.headers["x-lorauter-backend"] == target.kind
    assert raw.headers["x-lorauter-decision"] != "none"
    assert "x-lorauter-degraded" not in raw.headers
    pieces = list(openai.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == answer.choices[0].text
    assert pieces[-1].usage == answer.usage
    assert {piece.model for piece in pieces} == {answer.model}


def test_openai_chat_is_routed_streamed_or_not(
    target: Target, openai: OpenAI, query: tuple[str, str]
) -> None:
    task, text = query
    ask: dict[str, Any] = {"model": "auto", "messages": chat(text), "max_tokens": TOKENS}
    answer = openai.chat.completions.create(**ask)
    assert answer.choices[0].message.content == wanted(target, chat(text), target.best[task])
    pieces = openai.chat.completions.create(**ask, stream=True)
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert said == answer.choices[0].message.content


def test_openai_client_pins_an_adapter_and_the_base(
    target: Target, openai: OpenAI, query: tuple[str, str]
) -> None:
    task, text = query
    for model, adapter in ((target.best[task] or "base", target.best[task]), ("base", ""), (target.base, "")):
        raw = openai.completions.with_raw_response.create(model=model, prompt=text, max_tokens=TOKENS)
        assert raw.parse().choices[0].text == wanted(target, text, adapter)
        assert raw.headers["x-lorauter-adapters"] == f"{adapter or 'base'};w=1.0"
        assert raw.headers["x-lorauter-decision"] == "none"
        said = openai.chat.completions.create(model=model, messages=chat(text), max_tokens=TOKENS)
        assert said.choices[0].message.content == wanted(target, chat(text), adapter)


def test_openai_client_is_told_when_a_model_does_not_exist(openai: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(NotFoundError, match="nobody"):
            openai.completions.create(model="nobody", prompt="Hello", stream=stream)


def test_openai_client_lists_what_may_be_asked_for(target: Target, openai: OpenAI) -> None:
    names = {model.id for model in openai.models.list()}
    assert {"auto", target.base, *filter(None, target.best.values())} <= names


def test_hub_client_is_routed_pinned_and_gets_the_base(
    target: Target, hub: InferenceClient, query: tuple[str, str]
) -> None:
    task, text = query
    adapter = target.best[task]
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, adapter),
        ({"adapter_id": adapter or "base"}, adapter),
        ({"adapter_id": "base"}, ""),
    ]
    for named, expected in cases:
        whole = hub.text_generation(text, max_new_tokens=TOKENS, details=True, **named)
        assert whole.generated_text == wanted(target, text, expected)
        pieces = list(hub.text_generation(text, max_new_tokens=TOKENS, details=True, stream=True, **named))
        *before, last = pieces
        assert last.generated_text == whole.generated_text
        assert all(event.generated_text is None for event in before)
        said = "".join(event.token.text for event in pieces if not event.token.special)
        assert said == whole.generated_text
        tokens = whole.details.tokens
        assert len(tokens) == (0 if target.kind == "vllm" else whole.details.generated_tokens)
        assert not tokens or [event.token.text for event in pieces] == [token.text for token in tokens]
        assert last.details.finish_reason == whole.details.finish_reason


def test_hub_chat_is_routed_streamed_or_not(
    target: Target, hub: InferenceClient, query: tuple[str, str]
) -> None:
    task, text = query
    whole = hub.chat_completion(chat(text), max_tokens=TOKENS)
    assert whole.choices[0].message.content == wanted(target, chat(text), target.best[task])
    chunks = hub.chat_completion(chat(text), max_tokens=TOKENS, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content


def test_client_stops_and_ends_where_it_wants(target: Target, openai: OpenAI, hub: InferenceClient) -> None:
    text = "Say the word aurora letter by letter."
    whole = hub.text_generation(text, max_new_tokens=TOKENS, adapter_id="base")
    stop = whole[1:3]
    told = hub.text_generation(text, max_new_tokens=TOKENS, adapter_id="base", stop=[stop], details=True)
    end = whole.index(stop) + len(stop)
    assert told.generated_text[:end] == whole[:end]
    assert whole.startswith(told.generated_text), "it ends with the token that completes the stop text"
    assert told.details.finish_reason == "stop_sequence"
    ask: dict[str, Any] = {"model": "base", "prompt": text, "max_tokens": TOKENS, "stop": stop}
    answer = openai.completions.create(**ask)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")
    pieces = openai.completions.create(**ask, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    cut = openai.completions.create(model="base", prompt=text, max_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)


def test_grpc_client_is_routed_streamed_or_not(target: Target, query: tuple[str, str]) -> None:
    task, text = query
    with Client(gateway=target.gateway.grpc) as client:
        answer = client.generate(text, max_new_tokens=TOKENS)
        assert answer.text == wanted(target, text, target.best[task])
        assert answer.served.backend_kind == target.kind
        pieces = list(client.generate_stream(text, max_new_tokens=TOKENS))
    assert "".join(piece.text for piece in pieces) == answer.text
    assert pieces[0].served == answer.served


@pytest.mark.parametrize("_", DEMO_ONLY)
@pytest.mark.parametrize("target", [kind for kind in KINDS if kind == "engine"], indirect=True)
def test_engine_answers_through_the_gateway_as_it_does_itself(
    target: Target, query: tuple[str, str], _: str
) -> None:
    task, text = query
    adapter = target.best[task]
    asked: dict[str, Any] = {"adapter_id": adapter, "max_new_tokens": TOKENS, "details": True}
    body = {"inputs": text, "parameters": asked}
    through = target.gateway.post("/generate", body)
    itself = target.ask(text, adapter, TOKENS)
    assert through.json() == itself.json()
    stream = events_of(target.gateway.post("/generate_stream", body).text)
    assert [event["token"] for event in stream] == itself.json()["details"]["tokens"]
    said = target.gateway.post(
        "/v1/chat/completions", {"model": adapter, "messages": chat(text), "max_tokens": TOKENS}
    ).json()
    same = target.ask(chat(text), adapter, TOKENS).json()
    assert said["usage"] == same["usage"]
    assert said["choices"][0]["message"]["content"] == same["choices"][0]["message"]["content"]
    assert said["choices"][0]["finish_reason"] == same["choices"][0]["finish_reason"]
