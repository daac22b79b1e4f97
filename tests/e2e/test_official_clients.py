"""The clients that people already have work unchanged: `openai` and `huggingface_hub`."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError, ValidationError
from openai import NotFoundError, OpenAI

from lorauter_suite.seeding import POOL_ID
from lorauter_suite.suite import Addresses
from lorauter_suite.walkthrough import Query, sample_queries
from tests.e2e.conftest import engine_key

BASE_MODEL = "lorauter/demo-base"
HOT: dict[str, Any] = {"temperature": 9.0, "max_new_tokens": 16}


@pytest.fixture
def query() -> Query:
    """A test query of the demo pool."""
    return sample_queries(1)[0]


@pytest.fixture
def openai(addresses: Addresses) -> OpenAI:
    """The official client, against the gateway."""
    return OpenAI(base_url=f"{addresses.gateway_http}/v1", api_key=addresses.api_key, max_retries=0)


@pytest.fixture
def tgi(addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> InferenceClient:
    """The current client of text-generation-inference, against the gateway."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # offline, it calls no URL at all
    return InferenceClient(model=addresses.gateway_http, token=addresses.api_key, timeout=30)


@pytest.fixture(params=["engine", "gateway"])
def hub(
    addresses: Addresses, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> InferenceClient:
    """The same client, against the engine and against the gateway."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    url, key = {
        "engine": (addresses.engine_http, engine_key()),
        "gateway": (addresses.gateway_http, addresses.api_key),
    }[request.param]
    return InferenceClient(model=url, token=key, timeout=30)


def test_openai_chat_is_routed_when_the_model_is_auto(openai: OpenAI, query: Query) -> None:
    raw = openai.chat.completions.with_raw_response.create(
        model=f"auto:{POOL_ID}",
        messages=[{"role": "user", "content": query.text}],
        max_tokens=query.max_new_tokens,
    )
    answer = raw.parse()
    assert answer.choices[0].message.content is not None
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer.model not in ("auto", BASE_MODEL)
    assert raw.headers["x-lorauter-decision"]
    assert raw.headers["x-lorauter-adapters"]
    assert raw.headers["x-lorauter-composition"] in ("exact", "single")
    assert raw.headers["x-lorauter-backend"] == "engine"


def test_openai_stream_equals_the_answer_in_one_piece(openai: OpenAI, query: Query) -> None:
    messages: Any = [{"role": "user", "content": query.text}]
    whole = openai.chat.completions.create(model="auto", messages=messages, max_tokens=16)
    pieces = openai.chat.completions.create(model="auto", messages=messages, max_tokens=16, stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert streamed == whole.choices[0].message.content


def test_openai_completions_serve_the_base_when_it_is_named(openai: OpenAI, query: Query) -> None:
    answer = openai.completions.create(model=BASE_MODEL, prompt=query.text, max_tokens=8)
    assert answer.model == BASE_MODEL


def test_openai_model_list_names_auto_base_and_adapters(openai: OpenAI) -> None:
    names = {model.id for model in openai.models.list()}
    assert "auto" in names
    assert BASE_MODEL in names
    assert len(names) > 20


def test_openai_error_is_typed_when_the_model_is_unknown(openai: OpenAI, query: Query) -> None:
    with pytest.raises(NotFoundError, match="no-such-adapter"):
        openai.completions.create(model="no-such-adapter", prompt=query.text)


def test_huggingface_client_is_routed_when_no_adapter_is_named(tgi: InferenceClient, query: Query) -> None:
    answer = tgi.text_generation(query.text, max_new_tokens=query.max_new_tokens, details=True)
    assert answer.generated_text
    assert answer.details is not None
    assert answer.details.generated_tokens > 0


def test_huggingface_stream_equals_the_answer_in_one_piece(tgi: InferenceClient, query: Query) -> None:
    whole = tgi.text_generation(query.text, max_new_tokens=16)
    pieces = list(tgi.text_generation(query.text, max_new_tokens=16, stream=True, details=True))
    assert pieces[-1].generated_text == whole


def test_huggingface_client_pins_the_adapter_it_names(
    tgi: InferenceClient, openai: OpenAI, query: Query
) -> None:
    adapter = next(
        m.id for m in openai.models.list() if m.id not in ("auto", "base", f"auto:{POOL_ID}", BASE_MODEL)
    )
    pinned = tgi.text_generation(query.text, max_new_tokens=16, adapter_id=adapter)
    same = openai.completions.create(model=adapter, prompt=query.text, max_tokens=16, temperature=0)
    assert pinned == same.choices[0].text


def test_huggingface_client_gets_each_token_when_it_asks_for_details(
    hub: InferenceClient, query: Query
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 16, "details": True, "top_n_tokens": 2}
    whole = hub.text_generation(query.text, decoder_input_details=True, **options)
    assert whole.details.prefill[0].logprob is None
    assert len(whole.details.prefill) > len(query.text.split())
    assert len(whole.details.tokens) == whole.details.generated_tokens
    assert all(len(top) == 2 for top in whole.details.top_tokens)
    *before, last = hub.text_generation(query.text, stream=True, **options)
    assert [event.token.id for event in (*before, last)] == [token.id for token in whole.details.tokens]
    assert all(event.generated_text is None and event.details is None for event in before)
    assert (last.generated_text, last.details.finish_reason) == (
        whole.generated_text,
        whole.details.finish_reason,
    )
    assert last.details.input_length == len(whole.details.prefill)
    texts = hub.text_generation(query.text, stream=True, max_new_tokens=16)
    assert "".join(texts).removesuffix("</s>") == whole.generated_text


def test_huggingface_client_stops_cuts_and_returns_the_prompt(hub: InferenceClient, query: Query) -> None:
    whole = hub.text_generation(query.text, max_new_tokens=16)
    stop = whole[1:3]
    stopped = hub.text_generation(query.text, max_new_tokens=16, stop=[stop, "\x7f"], details=True)
    assert stopped.generated_text == whole[: whole.index(stop) + len(stop)]
    assert stopped.details.finish_reason == "stop_sequence"
    full = hub.text_generation(query.text, max_new_tokens=16, return_full_text=True)
    assert full == query.text + whole
    cut = hub.text_generation(
        query.text, max_new_tokens=2, truncate=3, details=True, decoder_input_details=True
    )
    assert len(cut.details.prefill) == 3
    assert (cut.details.generated_tokens, cut.details.finish_reason) == (2, "length")


def test_huggingface_client_samples_as_it_asks(hub: InferenceClient, query: Query) -> None:
    whole = hub.text_generation(query.text, max_new_tokens=16)
    first, again, other = (hub.text_generation(query.text, seed=seed, **HOT) for seed in (1, 1, 2))
    assert first == again != other
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        assert hub.text_generation(query.text, **HOT, **narrow) == whole
    typical = {hub.text_generation(query.text, seed=seed, typical_p=1e-6, **HOT) for seed in (1, 2)}
    assert len(typical) == 1
    assert hub.text_generation(query.text, max_new_tokens=16, repetition_penalty=9.0) != whole
    sampled = hub.text_generation(query.text, max_new_tokens=4, do_sample=True, seed=5, details=True)
    assert sampled.details.seed == 5
    same = hub.text_generation(query.text, max_new_tokens=16, do_sample=False, best_of=1, watermark=False)
    assert same == whole
    best = hub.text_generation(query.text, max_new_tokens=8, do_sample=True, best_of=2, details=True)
    assert len(best.details.best_of_sequences) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 2),
        ("watermark", True),
        ("grammar", {"type": "regex", "value": "[0-9]+"}),
        ("grammar", {"type": "json", "value": {"type": "object"}}),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("top_n_tokens", 99),
        ("truncate", 0),
        ("temperature", 0.0),
        ("max_new_tokens", 100_000),
    ],
)
def test_huggingface_client_is_told_the_field_that_is_not_served(
    hub: InferenceClient, query: Query, field: str, value: Any, stream: bool
) -> None:
    fields: dict[str, Any] = {field: value, "stream": stream}
    with pytest.raises(ValidationError, match=rf"\b{field}\b"):
        list(hub.text_generation(query.text, **fields))


def test_huggingface_client_is_told_that_streams_have_no_prompt_tokens(
    hub: InferenceClient, query: Query
) -> None:
    with pytest.raises(ValidationError, match="decoder_input_details"):
        list(hub.text_generation(query.text, decoder_input_details=True, details=True, stream=True))


def test_huggingface_chat_streams_what_it_answers_whole(hub: InferenceClient, query: Query) -> None:
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0}
    messages = [{"role": "user", "content": query.text}]
    whole = hub.chat_completion(messages, n=1, **options)
    text = whole.choices[0].message.content
    assert text
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    usage: Any = {"include_usage": True}
    *chunks, last = hub.chat_completion(messages, stream=True, stream_options=usage, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    stopped = hub.chat_completion(messages, stop=[text[1:3]], **options)
    assert stopped.choices[0].message.content == text[: text.index(text[1:3])]
    hot: dict[str, Any] = {"max_tokens": 16, "temperature": 2.0}
    first, again, other = (
        hub.chat_completion(messages, seed=seed, **hot).choices[0].message.content for seed in (1, 1, 3)
    )
    assert first == again != other


def test_huggingface_chat_gives_logprobs_when_it_talks_to_the_engine(
    addresses: Addresses, tgi: InferenceClient, query: Query
) -> None:
    messages = [{"role": "user", "content": query.text}]
    ask: dict[str, Any] = {"messages": messages, "max_tokens": 4, "temperature": 0.0}
    ask |= {"logprobs": True, "top_logprobs": 3}
    engine = InferenceClient(model=addresses.engine_http, token=engine_key(), timeout=30)
    answer = engine.chat_completion(**ask)
    listed = answer.choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in listed] == [3] * answer.usage.completion_tokens
    with pytest.raises(HfHubHTTPError, match="logprobs"):
        tgi.chat_completion(**ask)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ("tool_choice", "required"),
        ("tool_prompt", "Use a function."),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", [1.0]),
    ],
)
def test_huggingface_chat_is_told_the_field_that_is_not_served(
    hub: InferenceClient, addresses: Addresses, query: Query, field: str, value: Any, stream: bool
) -> None:
    fields: dict[str, Any] = {field: value, "stream": stream}
    with pytest.raises(HfHubHTTPError, match=rf"\b{field}\b") as refused:
        hub.chat_completion([{"role": "user", "content": query.text}], **fields)
    # the gateway's OpenAI routes refuse as OpenAI does
    expected = 422 if hub.model == addresses.engine_http else 400
    assert refused.value.response.status_code == expected
