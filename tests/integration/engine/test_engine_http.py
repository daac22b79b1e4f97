"""The engine as a process, called by the clients that people use."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

UNKNOWN = "sha256:" + "0" * 64


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def hub(url, monkeypatch):
    # The suite is offline towards the hub; this hub is ours.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return InferenceClient(model=url, timeout=60)


@pytest.fixture
def chat(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not in 20 s"
        time.sleep(0.02)


def test_huggingface_hub_generates_when_it_talks_to_the_engine(hub, pool) -> None:
    digest = pool.adapters["plain"]
    text = hub.text_generation("the cat sat", max_new_tokens=20)
    assert text
    assert hub.text_generation("the cat sat", max_new_tokens=20) == text
    adapted = hub.text_generation("the cat sat", max_new_tokens=20, adapter_id=digest)
    assert adapted != text
    bare = digest.removeprefix("sha256:")
    assert hub.text_generation("the cat sat", max_new_tokens=20, adapter_id=bare) == adapted
    full = hub.text_generation("the cat sat", max_new_tokens=20, return_full_text=True)
    assert full == "the cat sat" + text
    stop = text[5:8]
    stopped = hub.text_generation("the cat sat", max_new_tokens=20, stop=[stop])
    assert stopped == text[: text.index(stop) + len(stop)]
    seeded = [hub.text_generation("a", max_new_tokens=20, do_sample=True, seed=seed) for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]


def test_huggingface_hub_reads_details_and_streams(hub) -> None:
    whole = hub.text_generation("the cat sat", max_new_tokens=12, details=True, decoder_input_details=True)
    assert whole.details.generated_tokens == len(whole.details.tokens)
    assert whole.details.finish_reason in ("length", "eos_token")
    assert "".join(token.text for token in whole.details.prefill) == "the cat sat"
    assert whole.details.seed is None
    events = list(hub.text_generation("the cat sat", max_new_tokens=12, details=True, stream=True))
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert "".join(e.token.text for e in events if not e.token.special) == whole.generated_text
    assert all(event.generated_text is None for event in events[:-1])
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details.generated_tokens == whole.details.generated_tokens
    assert [e.token.id for e in events] == [token.id for token in whole.details.tokens]
    assert "".join(hub.text_generation("the cat sat", max_new_tokens=12, stream=True)) == whole.generated_text


@pytest.mark.parametrize("stream", [False, True])
def test_huggingface_hub_gets_its_error_when_the_adapter_is_unknown(hub, stream) -> None:
    with pytest.raises(ValidationError, match="register it first"):
        list(hub.text_generation("the cat", adapter_id=UNKNOWN, stream=stream, max_new_tokens=4))


def test_openai_chats_and_completes_when_it_talks_to_the_engine(chat, pool) -> None:
    messages: Any = [{"role": "user", "content": "the cat"}, {"role": "user", "content": "sat on"}]
    greedy: dict[str, Any] = {"model": "test/tiny", "max_tokens": 16, "temperature": 0}
    base = chat.chat.completions.create(messages=messages, **greedy)
    assert base.model == "test/tiny"
    assert base.usage.total_tokens == base.usage.prompt_tokens + base.usage.completion_tokens
    weighted = [{"id": pool.adapters["plain"], "weight": 1.0}]
    adapted = chat.chat.completions.create(messages=messages, extra_body={"adapters": weighted}, **greedy)
    named = chat.chat.completions.create(messages=messages, **(greedy | {"model": pool.adapters["plain"]}))
    assert adapted.choices[0].message.content == named.choices[0].message.content
    assert adapted.choices[0].message.content != base.choices[0].message.content
    stop = (base.choices[0].message.content or "")[4:6]
    options = {"include_usage": True}
    chunks = list(
        chat.chat.completions.create(
            messages=messages, stream=True, stop=[stop], stream_options=options, **greedy
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == (base.choices[0].message.content or "").split(stop)[0]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    logged = chat.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **greedy)
    assert len(logged.choices[0].logprobs.content[0].top_logprobs) == 2
    completed = chat.completions.create(prompt=["the cat", "a dog"], **greedy)
    assert [choice.index for choice in completed.choices] == [0, 1]
    pieces: dict[int, str] = {0: "", 1: ""}
    for chunk in chat.completions.create(prompt=["the cat", "a dog"], stream=True, **greedy):
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert pieces == {choice.index: choice.text for choice in completed.choices}
    assert [model.id for model in chat.models.list()] == ["test/tiny"]


def test_openai_gets_422_when_the_request_cannot_be_served(chat) -> None:
    ask = chat.chat.completions.create
    good: dict[str, Any] = {"model": "tgi", "messages": [{"role": "user", "content": "the"}], "max_tokens": 2}
    assert ask(**good).choices[0].finish_reason == "length"
    changes: tuple[dict[str, Any], ...] = (
        {"model": "gpt-9"},
        {"model": UNKNOWN},
        {"n": 2},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        {"messages": []},
        {"stream": True, "model": "gpt-9"},
    )
    for change in changes:
        with pytest.raises(openai.UnprocessableEntityError):
            ask(**(good | change))


def test_bodies_are_refused_when_they_are_wrong(http) -> None:
    ok = {"inputs": "the", "parameters": {"max_new_tokens": 2}}

    def answer(body: Any, path: str = "/generate") -> tuple[int, str, str]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = http.post(path, content=content)
        found = response.json()
        assert "Traceback" not in response.text
        return response.status_code, found["error_type"], found["error"]

    assert http.post("/generate", json=ok).status_code == 200
    for data in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nonsense"):
        assert answer(data)[:2] == (400, "validation"), data[:10]
    for body in (
        {},
        [],
        {"inputs": 3},
        {"inputs": ""},
        {"inputs": "x " * 400},
        {"inputs": "the", "parameters": {"max_new_tokens": 100_000}},
        *(
            {"inputs": "the", "parameters": {name: value}}
            for name, value in {
                "max_new_tokens": 0,
                "temperature": 0,
                "top_p": 1.5,
                "top_k": 0,
                "typical_p": 0,
                "repetition_penalty": -1,
                "seed": -1,
                "best_of": 2,
                "watermark": True,
                "grammar": {"type": "json", "value": {}},
                "stop": ["a", "b", "c", "d", "e"],
                "truncate": 0,
                "adapters": [{"id": UNKNOWN, "weight": 1}],
                "adapter_id": "../../etc/passwd",
            }.items()
        ),
        {"inputs": "the", "parameters": {"adapters": [{"weight": 1}]}},
        {"inputs": "the", "parameters": {"adapter_id": UNKNOWN, "adapters": [{"id": UNKNOWN}]}},
    ):
        for path in ("/generate", "/generate_stream", "/"):
            assert answer(body, path)[:2] == (422, "validation"), body
    nan = b'{"inputs":"the","parameters":{"adapters":[{"id":"%s","weight":NaN}]}}' % UNKNOWN.encode()
    assert answer(nan)[0] in (400, 422)
    assert answer({"items": [{"prompt": "a", "target": "b"}, {"prompt": "a"}]}, "/score")[2].startswith(
        "items.1"
    )
    both = {"items": [{"prompt": "a", "messages": [{"role": "user", "content": "x"}], "target": "b"}]}
    assert answer(both, "/score")[0] == 422
    assert answer({"items": [{"prompt": "", "target": "b"}]}, "/score")[2].startswith("items.0")
    assert answer({"items": [{"prompt": "a"}] * 1025}, "/generate_batch")[0] == 422
    long = answer({"items": [{"prompt": "a"}, {"prompt": "the " * 300}]}, "/generate_batch")
    assert long[2].startswith("items.1: `inputs` must have less than 256 tokens")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_refused_when_it_has_50_megabytes(http, chunked) -> None:
    megabyte = b"x" * 2**20
    content = (megabyte for _ in range(50)) if chunked else megabyte * 50
    try:
        response = http.post("/generate", content=content)
    except httpx.WriteError:
        assert chunked, "a declared length is answered before the body"
    else:
        assert response.status_code == 413
    assert http.get("/health").status_code == 200


def test_rows_are_freed_when_the_caller_hangs_up(http, url, pool) -> None:
    def body(seed: int) -> dict[str, Any]:
        return {
            "inputs": "the",
            "parameters": {
                "max_new_tokens": 250,
                "do_sample": True,
                "temperature": 9.0,
                "seed": seed,
                "adapter_id": pool.adapters["wide"],
            },
        }

    before = metric(http, 'lorauter_engine_tokens_total{kind="generated"}')
    for seed in range(4):
        with http.stream("POST", "/generate_stream", json=body(seed)) as response:
            assert next(response.iter_lines()).startswith("data:")
    for seed in range(4):
        patience = httpx.Timeout(30, read=0.02)
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=url, timeout=patience) as impatient:
            impatient.post(
                "/generate_batch", json={"items": [body(seed) | {"prompt": "the"}] * 64, **body(seed)}
            )
    until(lambda: metric(http, "lorauter_engine_rows") == 0)
    assert metric(http, 'lorauter_engine_queue{kind="rows"}') == 0
    assert (
        metric(http, 'lorauter_engine_tokens_total{kind="generated"}') - before < 4 * 250 + 4 * 64 * 250 / 2
    )
    assert http.post("/generate", json={"inputs": "the", "parameters": {"max_new_tokens": 2}}).is_success


def test_bulk_routes_answer_in_order_when_adapters_are_mixed(http, pool) -> None:
    sets = [
        [],
        [{"id": pool.adapters["plain"], "weight": 0.5}, {"id": pool.adapters["wide"], "weight": -0.5}],
    ]
    items = [
        {"prompt": text, "adapters": chosen} for text in ("the cat", "a dog ran over") for chosen in sets
    ]
    items.append({"messages": [{"role": "user", "content": "saw"}], "adapters": sets[1]})
    answers = http.post(
        "/generate_batch", json={"items": items, "parameters": {"max_new_tokens": 10}}
    ).json()["items"]
    for item, answer in zip(items[:4], answers, strict=False):
        parameters = {"max_new_tokens": 10, "adapters": item["adapters"], "details": True}
        single = http.post("/generate", json={"inputs": item["prompt"], "parameters": parameters}).json()
        assert answer["generated_text"] == single["generated_text"]
        assert answer["tokens"] == single["details"]["generated_tokens"]
    targets = [
        item | {"target": answer["generated_text"]} for item, answer in zip(items, answers, strict=True)
    ]
    scores = http.post("/score", json={"items": targets}).json()["items"]
    assert all(score["logprob"] < 0 and score["tokens"] > 1 for score in scores)
    assert http.post("/score", json={"items": []}).json() == {"items": []}


def test_plain_routes_and_headers_are_tgis(http) -> None:
    info = http.get("/info").json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == ("test/tiny", 256, 255)
    for path in ("/health", "/healthz", "/readyz", "/"):
        assert http.get(path).status_code == 200
    tokens = http.post("/tokenize", json={"inputs": "the cat"}).json()
    assert "".join(token["text"] for token in tokens) == "the cat"
    assert tokens[-1]["stop"] == 7
    rendered = http.post("/chat_tokenize", json={"messages": [{"role": "user", "content": "the"}]}).json()
    assert rendered["templated_text"] == "[user] the\n[assistant] "
    response = http.post("/", json={"inputs": "the cat", "parameters": {"max_new_tokens": 3}})
    assert list(response.json()[0]) == ["generated_text"]
    assert response.headers["x-prompt-tokens"] == str(len(tokens))
    assert response.headers["x-generated-tokens"] == "3"
    stream = http.post("/generate_stream", json={"inputs": "the", "parameters": {"max_new_tokens": 3}})
    assert re.fullmatch(r"(data:\{[^\n]*\}\n\n){3}", stream.text)
    assert stream.headers["content-type"].startswith("text/event-stream")
    sampled = {http.post("/generate", json={"inputs": "the"}).json()["generated_text"] for _ in range(3)}
    assert len(sampled) > 1, "TGI samples when there are no parameters at all"


def test_a_third_caller_is_refused_when_two_are_allowed(launch) -> None:
    with launch(LORAUTER_MAX_CONCURRENT_REQUESTS="2") as url:
        body = {"inputs": "the", "parameters": {"max_new_tokens": 250, "do_sample": True, "temperature": 9.0}}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: httpx.post(f"{url}/generate", json=body, timeout=60), range(8)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert all(answer.json()["error_type"] == "overloaded" for answer in refused)
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert sum(answer.status_code == 200 for answer in answers) == 8 - len(refused)
