"""OpenAI's and TGI's dialects, as their official clients and as bare HTTP see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import (
    GenerationError,
    IncompleteGenerationError,
    OverloadedError,
    ValidationError,
)

T = TypeVar("T")
Stand = Any
CHAT: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
PLAIN: dict[str, Any] = {"model": "auto", "prompt": "hi"}


@pytest.fixture
async def client(stand: Stand) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client, against the gateway."""
    async with openai.AsyncOpenAI(base_url=f"{stand.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(autouse=True)
def _clients_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session forbids the Hugging Face hub; its client refuses loopback then, too."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


async def tgi(stand: Stand, work: Callable[[InferenceClient], T]) -> T:
    """Runs ``work`` with TGI's client on a thread."""
    return await asyncio.to_thread(work, InferenceClient(model=stand.url, timeout=20))


def events(text: str) -> list[Any]:
    """The data of a stream's events; ``[DONE]`` as a text."""
    found = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    return [item if item == "[DONE]" else json.loads(item) for item in found]


async def test_openai_chat_names_what_served(stand: Stand, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**CHAT, max_completion_tokens=9, seed=4)
    assert answer.choices[0].message.content == "Hello world"
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "adds+2adds")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (5, 8)
    assert (stand.engine.bodies[0]["max_tokens"], stand.engine.bodies[0]["seed"]) == (9, 4)


async def test_openai_chat_streams_with_usage_when_asked(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello world"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


async def test_openai_completions_work_whole_and_streamed(stand: Stand, client: openai.AsyncOpenAI) -> None:
    stand.engine.finish_reason = "length"
    answer = await client.completions.create(**PLAIN)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello world", "length")
    chunks = [chunk async for chunk in await client.completions.create(**PLAIN, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {chunk.model for chunk in chunks} == {"adds+2adds"}


async def test_openai_stream_ends_with_done_and_stops_before_the_stop_text(stand: Stand) -> None:
    answer = await stand.post("/v1/completions", {**PLAIN, "stream": True, "stop": "orld"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-lorauter-composition"] == "exact"
    found = events(answer.text)
    assert found[-1] == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in found[:-1]) == "Hello w"
    assert stand.engine.bodies[0]["parameters"]["stop"] == ["orld"]


@pytest.mark.parametrize(
    ("model", "composition", "named"),
    [
        ("auto", "exact", "adds+2adds"),
        ("auto:demo", "exact", "adds+2adds"),
        ("tgi", "exact", "adds+2adds"),
        ("dummy", "exact", "adds+2adds"),
        ("adds", "single", "adds"),
        ("2adds@7", "single", "2adds"),
        ("base", "base", "lorauter/demo-base"),
        ("base:demo", "base", "lorauter/demo-base"),
        ("lorauter/demo-base", "base", "lorauter/demo-base"),
        ("demo-alias", "base", "lorauter/demo-base"),
    ],
)
async def test_model_says_what_answers(stand: Stand, model: str, composition: str, named: str) -> None:
    answer = await stand.post("/v1/completions", {**PLAIN, "model": model})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-lorauter-composition"] == composition
    assert answer.json()["model"] == named


@pytest.mark.parametrize("model", ["nowhere", "adds@", "gpt 4!", "mix-abc", "Übung", "auto:"])
async def test_openai_error_is_a_404_when_the_model_is_unknown(stand: Stand, model: str) -> None:
    if model == "auto:":
        model = "x" * 200
    answer = await stand.post("/v1/chat/completions", {**CHAT, "model": model})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error", "model", "model_not_found",
    )  # fmt: skip
    assert set(error) == {"message", "type", "param", "code"}


async def test_openai_models_lists_and_gets_names(stand: Stand, client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in client.models.list()]
    assert names == ["auto", "auto:demo", "lorauter/demo-base", "adds", "2adds"]
    assert (await client.models.retrieve("lorauter/demo-base")).owned_by == "demo"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nowhere")


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, {"do_sample": False}),
        ({"temperature": 0, "top_p": 0.5}, {"do_sample": False}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"top_p": 0.9, "seed": 3}, {"do_sample": True, "top_p": 0.9, "seed": 3}),
        ({"top_p": 1}, {"do_sample": False}),
        (
            {"max_tokens": 7, "stop": ["a", "b"]},
            {"do_sample": False, "max_new_tokens": 7, "stop": ["a", "b"]},
        ),
        ({"frequency_penalty": 0.5}, {"do_sample": False, "frequency_penalty": 0.5}),
        ({"frequency_penalty": 0, "presence_penalty": 0}, {"do_sample": False}),
        ({"user": "u", "unknown_field": 1, "n": 1, "logprobs": None}, {"do_sample": False}),
    ],
)
async def test_openai_sampling_is_greedy_unless_asked(stand: Stand, fields: Any, sent: Any) -> None:
    assert (await stand.post("/v1/completions", {**PLAIN, **fields})).status_code == 200
    parameters = stand.engine.bodies[0]["parameters"]
    assert {k: v for k, v in parameters.items() if k not in ("adapters", "details")} == sent


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [
        ("chat", {"n": 2}, "n", "unsupported_field"),
        ("chat", {"tools": [{"type": "function"}]}, "tools", "unsupported_field"),
        ("chat", {"logprobs": True}, "logprobs", "unsupported_field"),
        ("chat", {"response_format": {"type": "json_object"}}, "response_format", "unsupported_field"),
        ("chat", {"messages": []}, "messages", "invalid_field"),
        ("chat", {"messages": None}, "messages", "invalid_field"),
        ("chat", {"messages": [{"role": "user"}]}, "messages.0", "missing_field"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages.0", "invalid_field"),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0",
            "unsupported_field",
        ),
        ("chat", {"temperature": 3}, "temperature", "invalid_field"),
        ("chat", {"max_tokens": 0}, "max_tokens", "invalid_field"),
        ("chat", {"stop": ["a"] * 5}, "stop", "invalid_field"),
        ("chat", {"model": ""}, "model", "missing_field"),
        ("plain", {"prompt": ["a", "b"]}, "prompt", "unsupported_field"),
        ("plain", {"echo": True}, "echo", "unsupported_field"),
        ("plain", {"presence_penalty": 1}, "presence_penalty", "unsupported_field"),
        ("plain", {"best_of": 3}, "best_of", "unsupported_field"),
        ("plain", {"lorauter": {"max_adapters": 99}}, "lorauter.max_adapters", "invalid_field"),
    ],
)
async def test_openai_refuses_what_it_cannot_honour(
    stand: Stand, path: str, fields: Any, param: str, code: str
) -> None:
    body, route = (CHAT, "/v1/chat/completions") if path == "chat" else (PLAIN, "/v1/completions")
    answer = await stand.post(route, {**body, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert stand.engine.bodies == []


async def test_openai_text_parts_and_developer_role_are_understood(stand: Stand) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "c"},
    ]
    assert (await stand.post("/v1/chat/completions", {**CHAT, "messages": messages})).status_code == 200
    assert stand.engine.bodies[0]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "c"},
    ]


async def test_openai_routing_restrictions_reach_the_router(stand: Stand) -> None:
    routing = {"tags": ["x"], "max_adapters": 2, "exclude_adapters": ["y"]}
    await stand.post("/v1/completions", {**PLAIN, "model": "auto:demo", "lorauter": routing})
    request = stand.router.requests[0]
    assert (request.pool, request.max_adapters, list(request.tags)) == ("demo", 2, ["x"])
    assert list(request.exclude_adapters) == ["y"]


async def test_openai_error_codes_follow_the_backend(stand: Stand, client: openai.AsyncOpenAI) -> None:
    stand.engine.script.append((422, "validation", "`inputs` must have less than 9 tokens. Given: 10"))
    with pytest.raises(openai.BadRequestError) as too_long:
        await client.completions.create(**PLAIN)
    assert too_long.value.code == "context_length_exceeded"
    stand.engine.script.append((429, "overloaded", "full"))
    with pytest.raises(openai.RateLimitError) as full:
        await client.completions.create(**PLAIN)
    assert full.value.response.headers["retry-after"] == "3"
    stand.engine.script.append((424, "generation", "cuda"))
    with pytest.raises(openai.InternalServerError) as failed:
        await client.completions.create(**PLAIN)
    assert failed.value.code == "generation_failed"


async def test_openai_stream_says_when_it_breaks(stand: Stand, client: openai.AsyncOpenAI) -> None:
    stand.engine.script.append("break")
    stream = await client.completions.create(**PLAIN, stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        [chunk async for chunk in stream]
    stand.engine.script.append("break")
    text = (await stand.post("/v1/completions", {**PLAIN, "stream": True})).text
    assert "[DONE]" not in text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
async def test_openai_route_never_leaks_another_dialect(stand: Stand, path: str) -> None:
    headers = {"content-type": "application/json"}
    for content in (b"{", b"[]", b"\xff\xfe", b"{}", b'{"model": 3}', b"null"):
        answer = await stand.http.post(stand.url + path, content=content, headers=headers)
        assert 400 <= answer.status_code < 500
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (await stand.http.delete(stand.url + path)).json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/v1/route"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_large_body_is_413_in_the_dialect_of_the_route(
    stand: Stand, path: str, is_chunked: bool
) -> None:
    body = json.dumps({"inputs": "y" * 3_000_000, "model": "auto", "prompt": "x"}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    headers = {"content-type": "application/json"}
    content = chunks() if is_chunked else body
    answer = await stand.http.post(stand.url + path, content=content, headers=headers)
    assert answer.status_code == 413
    assert ("error" in answer.json()) == (path != "/v1/route")


async def test_tgi_client_generates_whole_and_streamed(stand: Stand) -> None:
    assert await tgi(stand, lambda c: c.text_generation("hi", max_new_tokens=3)) == "Hello world"
    detailed = await tgi(stand, lambda c: c.text_generation("hi", details=True))
    assert (detailed.details.finish_reason, detailed.details.generated_tokens) == ("eos_token", 3)
    assert len(detailed.details.tokens) == 3
    pieces = await tgi(stand, lambda c: list(c.text_generation("hi", stream=True)))
    assert "".join(pieces) == "Hello world"
    tokens = await tgi(stand, lambda c: list(c.text_generation("hi", stream=True, details=True)))
    assert tokens[-1].generated_text == "Hello world"
    assert (tokens[-1].details.generated_tokens, tokens[-1].details.input_length) == (3, 5)
    assert [token.index for token in tokens] == [1, 2, 3]
    assert tokens[0].generated_text is None


async def test_tgi_client_pins_and_forwards_parameters(stand: Stand) -> None:
    await tgi(
        stand,
        lambda c: c.text_generation(
            "hi", adapter_id="adds", temperature=0.5, seed=7, stop=["x"], typical_p=0.9, truncate=5
        ),
    )
    parameters = stand.engine.bodies[0]["parameters"]
    assert parameters.pop("adapters") == [{"id": "sha256:" + "a" * 64, "weight": 1.0}]
    assert "adapter_id" not in parameters
    expected = {
        "do_sample": True,
        "temperature": 0.5,
        "seed": 7,
        "stop": ["x"],
        "typical_p": 0.9,
        "truncate": 5,
    }
    assert parameters.items() >= expected.items()


async def test_tgi_client_raises_its_own_errors(stand: Stand) -> None:
    with pytest.raises(ValidationError, match="nowhere"):
        await tgi(stand, lambda c: c.text_generation("hi", adapter_id="nowhere"))
    stand.engine.script.append((424, "generation", "cuda"))
    with pytest.raises(GenerationError):
        await tgi(stand, lambda c: c.text_generation("hi"))
    stand.engine.script.append((429, "overloaded", "full"))
    with pytest.raises(OverloadedError):
        await tgi(stand, lambda c: c.text_generation("hi"))
    stand.engine.script.append("break")
    with pytest.raises(IncompleteGenerationError):
        await tgi(stand, lambda c: list(c.text_generation("hi", stream=True)))


async def test_tgi_compatible_root_answers_a_list_or_streams(stand: Stand) -> None:
    whole = await stand.post("/", {"inputs": "hi", "parameters": {"details": True}})
    assert whole.json()[0]["generated_text"] == "Hello world"
    assert (whole.headers["x-prompt-tokens"], whole.headers["x-generated-tokens"]) == ("5", "3")
    streamed = await stand.post("/", {"inputs": "hi", "stream": True})
    assert events(streamed.text)[-1]["generated_text"] == "Hello world"
    assert events(streamed.text)[-1]["details"] is None


async def test_tgi_stream_keeps_unusual_line_separators(stand: Stand) -> None:
    stand.engine.words = ("a\u2028b", "\u0085c", "\N{GRINNING FACE}")
    found = events((await stand.post("/generate_stream", {"inputs": "hi"})).text)
    assert found[-1]["generated_text"] == "a\u2028b\u0085c\N{GRINNING FACE}"
    pieces = await tgi(stand, lambda c: list(c.text_generation("hi", stream=True)))
    assert "".join(pieces) == "a\u2028b\u0085c\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 422, "inputs"),
        ({"inputs": 4}, 422, "inputs"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 0}}, 422, "max_new_tokens"),
        ({"inputs": "x", "parameters": {"stop": ["a"] * 5}}, 422, "stop"),
        ({"inputs": "x", "parameters": {"adapters": []}}, 422, "adapter_id"),
        ({"inputs": "x", "parameters": {"adapter_id": "retired"}}, 422, "use adds"),
    ],
)
async def test_tgi_error_is_a_typed_validation(stand: Stand, body: Any, status: int, says: str) -> None:
    for path in ("/generate", "/generate_stream", "/"):
        answer = await stand.post(path, body)
        assert answer.status_code == status
        assert answer.json()["error_type"] == "validation"
        assert says in answer.json()["error"]


async def test_tgi_malformed_json_is_400(stand: Stand) -> None:
    headers = {"content-type": "application/json"}
    answer = await stand.http.post(stand.url + "/generate", content=b"{", headers=headers)
    assert (answer.status_code, answer.json()["error_type"]) == (400, "validation")


async def test_tgi_info_and_health(stand: Stand) -> None:
    info = (await stand.http.get(stand.url + "/info")).json()
    assert (info["model_id"], info["max_input_tokens"], info["max_total_tokens"]) == (
        "lorauter/demo-base", 100, 200,
    )  # fmt: skip
    for path in ("/health", "/"):
        assert (await stand.http.get(stand.url + path)).status_code == 200


async def test_route_decides_and_serves_nothing(stand: Stand) -> None:
    answer = await stand.post("/v1/route", {"query": "hi", "pool": "demo", "explain": True})
    assert answer.headers["x-lorauter-decision"] == "d1"
    body = answer.json()
    assert [adapter["adapter_id"] for adapter in body["adapters"]] == ["adds", "2adds"]
    assert body["action"] == "ROUTE_ACTION_ADAPTERS"
    assert stand.router.requests[0].explain
    assert stand.engine.bodies == []


async def test_route_errors_are_problems(stand: Stand) -> None:
    answer = await stand.post("/v1/route", {"query": 3})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["reason"] == "INVALID_FIELD"
    assert (await stand.http.get(stand.url + "/nowhere")).json()["reason"] == "NO_SUCH_ROUTE"


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/generate", b'{"inputs": "\\ud800"}'),
        ("/generate_stream", b'{"inputs": "hi", "parameters": {"stop": ["\\udfff"]}}'),
        ("/generate", b'{"inputs": "hi", "parameters": {"adapter_id": "adds", "typical_p": NaN}}'),
        ("/generate", b'{"inputs": "hi", "parameters": {"temperature": 1e999}}'),
        ("/v1/completions", b'{"model": "auto", "prompt": "\\ud800"}'),
        ("/v1/chat/completions", b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}'),
        ("/v1/route", b'{"query": "hi", "tags": ["\\ud800"]}'),
        ("/v1/route", b'{"query": "\xff"}'),
        ("/v1/route", b'{"query": ' + b"[" * 100_000),
    ],
)
async def test_body_is_refused_when_nothing_behind_could_carry_it(
    stand: Stand, route: str, body: bytes
) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{stand.url}{route}", content=body, headers={"content-type": "application/json"}
        )
    assert answer.status_code in (400, 422), answer.text
    assert "internal" not in answer.text.lower()
    assert not stand.engine.bodies
