"""Traces and logs of the gateway: whose span is whose, what they say, and that they cost no request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from benchmarks.traces import begun
from benchmarks.traces_receiver import ReceivedSpan, TraceReceiver
from lorauter import tracing
from lorauter.telemetry import configure_logging
from tests.integration.gateway.conftest import Stand, standing

BODY = {"model": "auto", "prompt": "a marked text", "max_tokens": 8}
AWAY = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "10"}


def turned_on(environment: dict[str, str]) -> Iterator[None]:
    """Turns traces of this process on for a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        tracing.configure("gateway")
        try:
            yield
        finally:
            tracing.close()


@pytest.fixture
def receiver() -> Iterator[TraceReceiver]:
    """A receiver of this process's spans."""
    with TraceReceiver() as listening:
        for _ in turned_on(listening.environment):
            yield listening


@pytest.fixture
async def traced(receiver: TraceReceiver) -> AsyncIterator[Stand]:
    """A gateway with two backends that makes spans, as its router does."""
    async with standing(engines=2) as found:
        yield found


def named(spans: list[ReceivedSpan], name: str, kind: str) -> list[ReceivedSpan]:
    """Returns the spans of a kind whose names begin so."""
    return [span for span in spans if span.name.startswith(name) and span.kind == kind]


async def come(
    receiver: TraceReceiver, is_whole: Callable[[list[ReceivedSpan]], bool], trace: str = ""
) -> list[ReceivedSpan]:
    """Returns the spans once they are whole; the gateway in this process goes on meanwhile."""
    return await asyncio.to_thread(receiver.until, is_whole, trace)


def has(name: str, kind: str, count: int = 1) -> Callable[[list[ReceivedSpan]], bool]:
    """Returns whether so many of them have come."""
    return lambda spans: len(named(spans, name, kind)) == count


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", BODY),
        ("/v1/completions", {**BODY, "stream": True}),
        ("/generate", {"inputs": "a marked text"}),
        ("/generate_stream", {"inputs": "a marked text"}),
    ],
)
async def test_backend_is_told_of_the_span_that_asks_it(
    traced: Stand, receiver: TraceReceiver, path: str, body: dict[str, Any]
) -> None:
    trace, place = begun()
    answer = await traced.post(path, body, headers={**place, "tracestate": "vendor=1"})
    assert answer.status_code == 200
    spans = await come(receiver, has(f"POST {path}", "server"), trace)
    (asked,), (asking,) = named(spans, "POST", "server"), named(spans, "text_completion", "client")
    assert asked.parent == place["traceparent"].split("-")[2]
    assert asking.parent == asked.id
    assert asking.begin >= asked.begin
    assert asking.end <= asked.end
    assert asking.attributes["gen_ai.usage.output_tokens"] == 3
    told = [headers for engine in traced.engines for headers in engine.headers if "traceparent" in headers]
    assert [headers["traceparent"] for headers in told] == [f"00-{trace}-{asking.id}-01"]
    assert told[0]["tracestate"] == "vendor=1"


async def test_call_over_grpc_is_traced_like_a_request(traced: Stand, receiver: TraceReceiver) -> None:
    assert (await traced.client.generate("a marked text")).text == "Hello world"
    spans = await come(receiver, has("lorauter.gateway", "server"))
    (called,) = named(spans, "lorauter.gateway.v1.GatewayService/Generate", "server")
    (routing,) = named(spans, "lorauter.router.v1.RouterService/Route", "client")
    (routed,) = named(spans, "lorauter.router.v1.RouterService/Route", "server")
    assert (called.parent, routing.parent, routed.parent) == ("", called.id, routing.id)
    assert called.attributes["rpc.response.status_code"] == "OK"
    assert called.attributes["lorauter.decision"] == "d1"


async def test_try_that_failed_and_the_one_that_answered_are_spans_of_their_own(
    traced: Stand, receiver: TraceReceiver
) -> None:
    for engine in traced.engines:
        engine.script.append((503, "overloaded", "overloaded"))
    trace, place = begun()
    await traced.post("/v1/completions", BODY, headers=place)
    spans = await come(receiver, has("POST /v1/completions", "server"), trace)
    tries = named(spans, "text_completion", "client")
    assert tries[0].failed
    assert tries[0].attributes["error.type"].startswith("BACKEND_")
    assert len({span.attributes["lorauter.backend"] for span in tries}) == len(tries)


async def test_caller_who_hangs_up_leaves_an_unfinished_span(traced: Stand, receiver: TraceReceiver) -> None:
    for engine in traced.engines:
        engine.script.append("endless")
    trace, place = begun()
    body = {**BODY, "stream": True}
    async with traced.http.stream(
        "POST", traced.url + "/v1/completions", json=body, headers=place, timeout=20
    ) as answer:
        async for _ in answer.aiter_lines():
            break
    spans = await come(receiver, has("text_completion", "client"), trace)
    (asking,) = named(spans, "text_completion", "client")
    assert asking.attributes["error.type"] == "UNFINISHED"


async def test_request_that_is_refused_says_why_by_its_status(traced: Stand, receiver: TraceReceiver) -> None:
    trace, place = begun()
    answer = await traced.post("/v1/completions", {**BODY, "max_tokens": 0}, headers=place)
    (asked,) = await come(receiver, has("POST /v1/completions", "server"), trace)
    assert asked.attributes["http.response.status_code"] == answer.status_code == 400
    assert not asked.failed
    assert "marked" not in repr(asked)


async def test_probes_and_polls_are_in_no_trace(traced: Stand, receiver: TraceReceiver) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/health"):
        await traced.http.get(traced.url + path)
    await traced.post("/v1/completions", BODY)
    spans = await come(receiver, has("POST /v1/completions", "server"))
    assert {span.trace for span in spans} == {spans[0].trace}


async def test_receiver_that_is_away_loses_no_request() -> None:
    for _ in turned_on({**AWAY, "OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}):
        async with standing() as stand:
            answers = [await stand.post("/v1/completions", BODY) for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200}


async def test_callers_trace_goes_nowhere_while_traces_are_off(stand: Stand) -> None:
    _, place = begun()
    answer = await stand.post("/v1/completions", BODY, headers={**place, "baggage": "who=me"})
    assert answer.status_code == 200
    assert not any(
        {"traceparent", "tracestate", "baggage"} & headers.keys() for headers in stand.engine.headers
    )


async def test_log_has_a_line_for_each_generation_and_none_of_its_texts(
    capsys: pytest.CaptureFixture[str], start: Callable[..., Any]
) -> None:
    configure_logging("gateway")
    async with start(log_requests=True) as stand:
        await stand.post("/v1/completions", BODY)
        await stand.post("/generate", {"inputs": "a marked text", "parameters": {"adapter_id": "nobody"}})
    log = capsys.readouterr().err
    lines = [json.loads(line) for line in log.splitlines() if "gateway.generation.ended" in line]
    ok, refused = lines
    assert (ok["route"], ok["outcome"], ok["decision"], ok["backend"]) == (
        *("openai.completions", "ok"),
        *("d1", "engine-0"),
    )
    assert (ok["adapters"], ok["composition"]) == ("adds@1:0.620 2adds@1:0.380", "exact")
    assert (refused["route"], refused["outcome"]) == ("tgi", "UNKNOWN_ADAPTER")
    assert "marked" not in log
