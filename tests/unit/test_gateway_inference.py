"""The span of a request to a backend: named by conventions, and without texts unless they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from benchmarks.traces_receiver import ReceivedSpan, TraceReceiver
from lorauter import tracing
from lorauter.access import Caller
from lorauter.gateway.v1.gateway_pb2 import Composition
from lorauter_gateway.domain.model import (
    Answer,
    FinishReason,
    Generation,
    Message,
    Prompt,
    Target,
    Usage,
    sampling,
)
from lorauter_gateway.domain.plan import Plan, WeightedAdapter
from lorauter_gateway.ports import Endpoint, Takes
from lorauter_gateway.service.inference import answered, begun

SET = (WeightedAdapter("upper", 1, 0.75, "sha256:aa"), WeightedAdapter("sort", 2, 0.25, "sha256:bb"))
ENDPOINT = Endpoint("gpu@http://tgi:8080", "gpu", "tgi", "http://tgi:8080", Takes.SETS, driver=None)
TALK = (Message("system", "Be brief."), Message("user", "What is a LoRA?"))


@pytest.fixture(params=[False, True], ids=["by default", "with prompts"])
def shows(request: pytest.FixtureRequest) -> bool:
    """Whether spans may hold texts."""
    return request.param


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch, shows: bool) -> Iterator[TraceReceiver]:
    """A receiver that this process sends its spans to."""
    with TraceReceiver() as listening:
        for name, value in listening.environment.items():
            monkeypatch.setenv(name, value)
        tracing.configure("gateway", shows)
        try:
            yield listening
        finally:
            tracing.close()


def asked(receiver: TraceReceiver, prompt: Prompt) -> ReceivedSpan:
    """Returns the span of a prompt that was answered."""
    generation = Generation(
        prompt,
        Target(),
        sampling(max_new_tokens=8, seed=3, stop=("\n",)),
        10.0,
        Caller("default", frozenset()),
    )
    plan = Plan(Composition.COMPOSITION_EXACT, SET)
    with tracing.span("served", "server"):
        span = begun(generation, plan, ENDPOINT, "llama")
        answered(span, Answer("An adapter.", FinishReason.STOP_SEQUENCE, Usage(11, 3)))
        span.end()
    return next(span for span in receiver.until(lambda spans: len(spans) == 2) if span.kind == "client")


def test_span_says_what_was_asked_and_what_came(receiver: TraceReceiver, shows: bool) -> None:
    span = asked(receiver, TALK)
    said = {name: value for name, value in span.attributes.items() if "messages" not in name}
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tgi",
        "gen_ai.request.model": said["gen_ai.response.model"],
        "gen_ai.response.model": span.name.removeprefix("chat "),
        "gen_ai.output.type": "text",
        "gen_ai.request.max_tokens": 8,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["stop"],
        "server.address": "tgi",
        "server.port": 8080,
        "lorauter.backend": "gpu",
        "lorauter.composition": "exact",
        "lorauter.adapters": ["upper@1 0.750", "sort@2 0.250"],
    }


def test_texts_are_there_only_where_they_are_asked_for(receiver: TraceReceiver, shows: bool) -> None:
    span = asked(receiver, TALK)
    texts = {name: value for name, value in span.attributes.items() if "messages" in name}
    if not shows:
        assert texts == {}
        assert "LoRA" not in repr(span)
        return
    assert json.loads(texts["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "What is a LoRA?"}]},
    ]
    assert json.loads(texts["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "An adapter."}]}
    ]


def test_raw_text_is_a_completion(receiver: TraceReceiver) -> None:
    span = asked(receiver, "Once upon a time")
    assert span.attributes["gen_ai.operation.name"] == "text_completion"
    assert span.name.startswith("text_completion ")


def test_nothing_is_put_together_while_traces_are_off() -> None:
    assert begun(None, None, None, "") is tracing.OFF
