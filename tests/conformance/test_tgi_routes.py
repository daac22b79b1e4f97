"""Every served route of TGI's document: bodies and status codes, whole, streamed and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import ValidationError

WORD = 'Write the word "raven" backwards:'
JAZZ = 'Write "jazz" in capital letters.'
POISONED = "a Z"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": WORD}]
BODIES: dict[str, dict[str, Any]] = {
    "/": {"inputs": WORD, "parameters": {"max_new_tokens": 8, "details": True, "top_n_tokens": 2}},
    "/generate": {"inputs": WORD, "parameters": {"max_new_tokens": 8, "details": True, "top_n_tokens": 2}},
    "/generate_stream": {"inputs": WORD, "parameters": {"max_new_tokens": 8, "details": True}},
    "/tokenize": {"inputs": WORD, "parameters": {"truncate": 5}},
    "/chat_tokenize": {"messages": MESSAGES},
    "/v1/chat/completions": {"model": "tgi", "messages": MESSAGES, "max_tokens": 8, "seed": 3},
    "/v1/completions": {"model": "tgi", "prompt": [WORD], "max_tokens": 8, "seed": 3},
}
GENERATING = tuple(path for path in BODIES if "tokenize" not in path)
NOT_SERVED = {
    "engine": {("post", "/invocations")},
    "gateway": {("post", "/invocations"), ("post", "/tokenize"), ("post", "/chat_tokenize")},
}
Server = Any


def asked(path: str, text: str, **fields: Any) -> dict[str, Any]:
    """A body for ``path`` with another prompt."""
    body = BODIES[path]
    if "inputs" in body:
        return {"inputs": text, "parameters": {"max_new_tokens": 8, **fields}}
    prompt = {"prompt": text} if "prompt" in body else {"messages": [{"role": "user", "content": text}]}
    return {"model": "tgi", "max_tokens": 8, **prompt, **fields}


def openai_shape(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk of the gateway as TGI writes it: OpenAI leaves out what a delta does not change."""
    for choice in chunk["choices"]:
        if "delta" in choice:
            choice["delta"] = {"role": "assistant", "content": "", **choice["delta"]}
        else:
            choice["finish_reason"] = choice["finish_reason"] or ""
    return chunk


def test_every_route_is_served_or_known_not_to_be(server: Server, document: Any) -> None:
    missing = set()
    for method, path in document.routes():
        response = server.http.request(method, path, json=BODIES.get(path))
        if response.status_code == 404:
            missing.add((method, path))
    assert missing == NOT_SERVED[server.name]


@pytest.mark.parametrize("path", BODIES)
def test_answer_conforms(server: Server, document: Any, path: str) -> None:
    if ("post", path) in NOT_SERVED[server.name]:
        assert server.ask(path, BODIES[path]).status_code == 404
        return
    response = server.ask(path, BODIES[path])
    assert response.status_code == 200, response.text
    assert document.check_response(response)


def test_answer_conforms_when_it_is_the_best_of_several(server: Server, document: Any) -> None:
    fields = {"best_of": 2, "temperature": 0.5, "details": True, "decoder_input_details": True}
    response = server.ask("/generate", asked("/generate", WORD, top_n_tokens=2, **fields))
    found = document.check_response(response)
    assert len(found["details"]["best_of_sequences"]) == 1
    assert found["details"]["best_of_sequences"][0]["prefill"] == found["details"]["prefill"] != []


@pytest.mark.parametrize("name", ["GenerateParameters", "ChatRequest", "CompletionRequest"])
def test_fields_may_be_null_where_the_document_says_so(server: Server, document: Any, name: str) -> None:
    nulls = {field: None for field, schema in document.properties(name).items() if schema.get("nullable")}
    path = {"ChatRequest": "/v1/chat/completions", "CompletionRequest": "/v1/completions"}.get(name)
    body = (
        {**BODIES[path], **nulls, "model": "tgi", "seed": 3}
        if path
        else {"inputs": WORD, "parameters": nulls}
    )
    response = server.ask(path or "/generate", body)
    assert response.status_code == 200, response.text
    document.check_response(response)


@pytest.mark.parametrize("path", ["/info", "/health", "/metrics"])
def test_plain_route_conforms(server: Server, document: Any, path: str) -> None:
    response = server.http.get(path)
    assert response.status_code == 200
    document.check_response(response)


def test_listed_models_conform(server: Server, document: Any) -> None:
    """TGI's document has the element, TGI itself and OpenAI answer a list; the engine's answer is both."""
    response = server.http.get("/v1/models")
    if server.name == "engine":
        document.check_response(response)
    listed = response.json()
    assert listed["object"] == "list"
    assert listed["data"]
    for model in listed["data"]:
        document.check(model, "ModelInfo")


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize(
    "change",
    [{"inputs": 4, "prompt": 4, "messages": 4}, {"inputs": "", "prompt": "", "messages": []}],
    ids=["wrong", "empty"],
)
def test_wrong_prompt_is_refused(server: Server, document: Any, path: str, change: dict[str, Any]) -> None:
    response = server.ask(path, {**BODIES[path], **change})
    assert response.status_code == (server.openai_status if path.startswith("/v1/") else 422)
    message = server.refusal(response, document)
    assert any(field in message for field in change)


@pytest.mark.parametrize("path", GENERATING)
def test_malformed_body_is_400_in_the_form_of_an_error(server: Server, document: Any, path: str) -> None:
    for content in (b"{", b"\xff", b"[" * 100_000):
        headers = {"content-type": "application/json"}
        response = server.http.post(path, content=content, headers=headers)
        assert response.status_code == 400
        assert server.refusal(response, document)


def test_other_refusals_have_the_form_of_an_error(server: Server, document: Any) -> None:
    large = server.http.post("/generate", content=b"x" * 17 * 2**20)
    assert large.status_code == 413
    document.check_response(large)
    wrong = server.http.delete("/generate")
    assert wrong.status_code == 405
    document.check(wrong.json(), "ErrorResponse")


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_failed_generation_is_424(server: Server, document: Any, path: str, stream: bool) -> None:
    response = server.ask(path, asked(path, POISONED) | {"stream": stream})
    if server.name == "gateway" and path.startswith("/v1/"):
        assert response.status_code == 503
    else:
        assert response.status_code == 424
        assert document.check_response(response)["error_type"] == "generation"
    assert "not finite" in server.refusal(response, document)


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("full_engine")
def test_full_engine_is_429(server: Server, document: Any, path: str, stream: bool) -> None:
    response = server.ask(path, asked(path, WORD) | {"stream": stream})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert server.refusal(response, document)
    if not path.startswith("/v1/"):
        assert response.json()["error_type"] == "overloaded"


def test_stream_is_framed_as_tgi_frames_it(server: Server, document: Any) -> None:
    whole = server.ask("/generate", BODIES["/generate"]).json()
    for path in ("/generate_stream", "/"):
        response = server.ask(path, {**BODIES["/generate"], "stream": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert all(part.startswith(b'data:{"index":') for part in response.content.split(b"\n\n")[:-1])
        *before, last = document.check_response(response)
        assert [event["index"] for event in (*before, last)] == list(range(1, len(before) + 2))
        assert all(event["generated_text"] is None and event["details"] is None for event in before)
        assert all(len(event["top_tokens"]) == 2 for event in (*before, last))
        assert last["generated_text"] == whole["generated_text"]
        tokens = [event["token"] for event in (*before, last)]
        assert tokens == whole["details"]["tokens"]
        document.check(last["details"], "StreamDetails")
        assert last["details"]["input_length"] > 0
        assert last["details"]["finish_reason"] == whole["details"]["finish_reason"]


def test_stream_has_no_details_when_they_are_not_asked_for(server: Server, document: Any) -> None:
    response = server.ask("/generate_stream", asked("/generate_stream", WORD, return_full_text=True))
    *_, last = document.check_response(response)
    assert (last["generated_text"], last["details"]) == (f"{WORD}raven", None)


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_stream_that_fails_ends_with_an_error(server: Server, document: Any, path: str) -> None:
    body = asked(path, JAZZ, adapter_id=server.adapter, max_new_tokens=8) | {"stream": True}
    response = server.ask(path, body)
    assert response.status_code == 200
    events = [part.removeprefix(b"data:") for part in response.content.split(b"\n\n")]
    assert events.pop() == b""
    *tokens, error = map(json.loads, events)
    assert "".join(event["token"]["text"] for event in tokens) == "JAZ"
    assert all(event["generated_text"] is None for event in tokens)
    document.check(error, "ErrorResponse")
    kinds = {"engine": "generation", "gateway": "incomplete_generation"}
    assert error["error_type"] == kinds[server.name]


@pytest.mark.parametrize(("path", "schema"), [("chat/", "ChatCompletionChunk"), ("", "Chunk")])
@pytest.mark.parametrize("has_usage", [False, True])
def test_openai_stream_conforms(
    server: Server, document: Any, path: str, schema: str, has_usage: bool
) -> None:
    route = f"/v1/{path}completions"
    whole = server.ask(route, asked(route, WORD, temperature=0)).json()
    options = {"stream": True, "stream_options": {"include_usage": has_usage}, "temperature": 0}
    response = server.ask(route, asked(route, WORD) | options)
    assert response.content.endswith(b"\n\ndata: [DONE]\n\n")
    parts = [part.removeprefix(b"data:") for part in response.content.split(b"\n\n")[:-2]]
    chunks = [json.loads(part) for part in parts]
    if server.name == "gateway":
        chunks = [openai_shape(chunk) for chunk in chunks]
    for chunk in chunks:
        document.check(chunk, schema)
    if has_usage:
        assert chunks.pop()["usage"] == whole["usage"]
    choices = [chunk["choices"][0] for chunk in chunks]
    said = [choice["delta"]["content"] if path else choice["text"] for choice in choices]
    first = whole["choices"][0]
    assert "".join(said) == (first["message"]["content"] if path else first["text"]) == "raven"
    assert choices[-1]["finish_reason"] == first["finish_reason"] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_openai_stream_that_fails_ends_with_an_error(server: Server) -> None:
    route = "/v1/completions"
    body = asked(route, JAZZ) | {"model": server.adapter, "stream": True, "temperature": 0}
    text = server.ask(route, body).text
    assert "[DONE]" not in text
    assert '{"error":{"message":' in text.split("\n\n")[-2]


def test_a_document_is_not_satisfied_by_anything(document: Any, engine: Server) -> None:
    answer = engine.ask("/generate", BODIES["/generate"]).json()
    document.check(answer, "GenerateResponse")
    for change in ({"generated_text": None}, {"details": {"finish_reason": "tired"}}):
        with pytest.raises(ValidationError):
            document.check(answer | change, "GenerateResponse")
