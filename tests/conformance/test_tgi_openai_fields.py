"""Every field of TGI's ChatRequest and CompletionRequest: what it does, or that it is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

PROMPT = 'Repeat the number "5555555555"'
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
WORD = 'Write the word "raven" backwards:'
RAVEN: dict[str, Any] = {CHAT: {"messages": [{"role": "user", "content": WORD}]}, PLAIN: {"prompt": WORD}}
HOT: dict[str, Any] = {"temperature": 2.0, "max_tokens": 8}
FUNCTION = {"type": "function", "function": {"name": "f", "arguments": {}}}
Server = Any


def body(path: str, **fields: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": PROMPT}]} if path == CHAT else {"prompt": PROMPT}
    return {"model": "tgi", "max_tokens": 24, "temperature": 0, **prompt, **fields}


def whole(server: Server, path: str, **fields: Any) -> dict[str, Any]:
    response = server.ask(path, body(path, **fields))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def text(server: Server, path: str, **fields: Any) -> str:
    choice = whole(server, path, **fields)["choices"][0]
    return str(choice["text"] if path == PLAIN else choice["message"]["content"])


def frequency_penalty(server: Server, path: str) -> None:
    assert len(text(server, path, frequency_penalty=2.0)) < len(text(server, path, frequency_penalty=0))


def repetition_penalty(server: Server, path: str) -> None:
    assert text(server, path, repetition_penalty=5.0) != text(server, path)


def max_tokens(server: Server, path: str) -> None:
    found = whole(server, path, max_tokens=3)
    assert found["usage"]["completion_tokens"] == 3
    assert found["choices"][0]["finish_reason"] == "length"


def messages(server: Server, path: str) -> None:
    parts = [{"type": "text", "text": PROMPT[:5]}, {"type": "text", "text": PROMPT[5:]}]
    assert text(server, path, messages=[{"role": "user", "content": parts}]) == text(server, path)
    assert text(server, path, **RAVEN[path]) == "raven"


def model(server: Server, path: str) -> None:
    chosen = [text(server, path, model=name, **RAVEN[path]) for name in ("tgi", "base", server.adapter)]
    assert chosen == ["raven", "raven", "RAVEN"]


def n(server: Server, path: str) -> None:
    assert len(whole(server, path, n=1)["choices"]) == 1


def prompt(server: Server, path: str) -> None:
    assert text(server, path, prompt=[PROMPT]) == text(server, path)


def seed(server: Server, path: str) -> None:
    first, again, other = (text(server, path, seed=seed, **HOT) for seed in (1, 1, 2))
    assert first == again != other


def stop(server: Server, path: str) -> None:
    assert text(server, path, stop=["555", "x"]) == ""
    assert whole(server, path, stop=["555"])["choices"][0]["finish_reason"] == "stop"


def stream(server: Server, path: str) -> None:
    response = server.ask(path, body(path, stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert whole(server, path, stream=False)["choices"]


def stream_options(server: Server, path: str) -> None:
    for has_usage in (True, False):
        options = {"stream": True, "stream_options": {"include_usage": has_usage}}
        events = server.ask(path, body(path, **options)).text.split("\n\n")[:-2]
        found = [json.loads(event.removeprefix("data:")).get("usage") for event in events]
        assert (found[-1] is not None) == has_usage
        assert not any(found[:-1])


def temperature(server: Server, path: str) -> None:
    assert text(server, path, seed=1, **HOT) != text(server, path, max_tokens=8)


def tool_choice(server: Server, path: str) -> None:
    assert text(server, path, tool_choice="none") == text(server, path, tools=[]) == text(server, path)


def top_p(server: Server, path: str) -> None:
    assert text(server, path, top_p=1e-6, **HOT) == text(server, path, max_tokens=8)


def presence_penalty(server: Server, path: str) -> None:
    assert text(server, path, presence_penalty=0) == text(server, path)


def logprobs(server: Server, path: str) -> None:
    assert whole(server, path, logprobs=False, top_logprobs=0)["choices"][0]["logprobs"] is None


def response_format(server: Server, path: str) -> None:
    assert text(server, path, response_format={"type": "text"}) == text(server, path)


def left_out(server: Server, path: str) -> None:
    for name in ("logit_bias", "suffix", "tool_prompt", "tools"):
        assert text(server, path, **{name: None}) == text(server, path)


HONOURED: dict[str, dict[str, Callable[[Server, str], None]]] = {
    CHAT: {
        **{"frequency_penalty": frequency_penalty, "logit_bias": left_out, "logprobs": logprobs},
        **{"max_tokens": max_tokens, "messages": messages, "model": model, "n": n, "seed": seed},
        **{"presence_penalty": presence_penalty, "response_format": response_format, "stop": stop},
        **{"stream": stream, "stream_options": stream_options, "temperature": temperature},
        **{"tool_choice": tool_choice, "tool_prompt": left_out, "tools": left_out},
        **{"top_logprobs": logprobs, "top_p": top_p},
    },
    PLAIN: {
        **{"frequency_penalty": frequency_penalty, "max_tokens": max_tokens, "model": model},
        **{"prompt": prompt, "repetition_penalty": repetition_penalty, "seed": seed, "stop": stop},
        **{"stream": stream, "suffix": left_out, "temperature": temperature, "top_p": top_p},
    },
}
CASES = [(path, name) for path, fields in HONOURED.items() for name in fields]

REFUSED = [
    *((path, "model", "no-such-model") for path in HONOURED),
    *((path, "max_tokens", 0) for path in HONOURED),
    *((path, "frequency_penalty", 3) for path in HONOURED),
    *((path, "seed", -1) for path in HONOURED),
    *((path, "stop", ["a", "b", "c", "d", "e"]) for path in HONOURED),
    *((path, "stop", [""]) for path in HONOURED),
    *((path, "stream", "often") for path in HONOURED),
    *((path, "temperature", -1) for path in HONOURED),
    *((path, "top_p", 0) for path in HONOURED),
    *((path, "n", 2) for path in HONOURED),
    *((path, "logit_bias", {"5": 1.0}) for path in HONOURED),
    (CHAT, "messages", []),
    (CHAT, "messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    (CHAT, "response_format", {"type": "json", "value": {}}),
    (CHAT, "tools", [FUNCTION]),
    (CHAT, "tool_choice", "required"),
    (CHAT, "tool_choice", {"function": {"name": "f"}}),
    (CHAT, "tool_prompt", "Use a function."),
    (PLAIN, "logprobs", 2),
    (PLAIN, "prompt", []),
    (PLAIN, "prompt", ["a"] * 5),
    (PLAIN, "repetition_penalty", 0),
    (PLAIN, "suffix", "the end"),
]


def test_no_field_is_forgotten(document: Any) -> None:
    assert set(HONOURED[CHAT]) == set(document.properties("ChatRequest"))
    assert set(HONOURED[PLAIN]) == set(document.properties("CompletionRequest"))


@pytest.mark.parametrize(("path", "field"), CASES)
def test_field_does_what_tgi_says(server: Server, path: str, field: str) -> None:
    HONOURED[path][field](server, path)


@pytest.mark.parametrize(("path", "field", "value"), REFUSED, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("streams", [False, True])
def test_field_is_refused_by_its_name(
    server: Server, document: Any, path: str, field: str, value: object, streams: bool
) -> None:
    response = server.ask(path, body(path, **{"stream": streams, field: value}))
    expected = 404 if (server.name, field) == ("gateway", "model") else server.openai_status
    assert response.status_code == expected, response.text
    assert field in server.refusal(response, document)


def test_engine_gives_logprobs_and_takes_presence(engine: Server, document: Any) -> None:
    answer = whole(engine, CHAT, logprobs=True, top_logprobs=2)
    document.check(answer, "ChatCompletion")
    listed = answer["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in listed] == [2] * answer["usage"]["completion_tokens"]
    assert text(engine, CHAT, presence_penalty=2.0) != text(engine, CHAT)
    alone = engine.ask(CHAT, body(CHAT, top_logprobs=2))
    assert (alone.status_code, "logprobs" in alone.text) == (422, True)


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"top_logprobs": 2}, {"presence_penalty": 1.0}])
def test_gateway_refuses_by_name_what_only_engines_do(gateway: Server, document: Any, fields: Any) -> None:
    response = gateway.ask(CHAT, body(CHAT, **fields))
    assert response.status_code == 400
    assert next(iter(fields)) in gateway.refusal(response, document)


def test_gateway_takes_one_prompt_a_request(engine: Server, gateway: Server) -> None:
    assert len(whole(engine, PLAIN, prompt=["a", "b"])["choices"]) == 2
    assert gateway.ask(PLAIN, body(PLAIN, prompt=["a", "b"])).status_code == 400
