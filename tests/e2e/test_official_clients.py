"""The clients that people already have work unchanged: `openai` and `huggingface_hub`."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import InferenceClient, constants
from openai import NotFoundError, OpenAI

from lorauter_suite.seeding import POOL_ID
from lorauter_suite.suite import Addresses
from lorauter_suite.walkthrough import Query, sample_queries

BASE_MODEL = "lorauter/demo-base"


@pytest.fixture
def query() -> Query:
    """A test query of the demo pool."""
    return sample_queries(1)[0]


@pytest.fixture
def openai(addresses: Addresses) -> OpenAI:
    """The official client, against the gateway."""
    return OpenAI(base_url=f"{addresses.gateway_http}/v1", api_key="none", max_retries=0)


@pytest.fixture
def tgi(addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> InferenceClient:
    """The current client of text-generation-inference, against the gateway."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # offline, it calls no URL at all
    return InferenceClient(model=addresses.gateway_http, timeout=30)


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
