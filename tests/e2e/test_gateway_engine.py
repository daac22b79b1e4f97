"""The gateway in front of the real router and engine: what callers cancel, pin and restrict."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lorauter import Client
from lorauter.errors import InvalidArgument, NotFound
from lorauter.gateway.v1 import gateway_pb2 as pb
from lorauter_suite.suite import Addresses
from lorauter_suite.walkthrough import Query, sample_queries
from tests.e2e.conftest import engine_headers

MOST_TOKENS = 100
LONG = {"max_new_tokens": MOST_TOKENS, "temperature": 50.0, "adapter_id": "base", "seed": 1}
"""So hot that hardly any answer ends before its limit."""


@pytest.fixture
def query() -> Query:
    """A test query of the demo pool."""
    return sample_queries(1)[0]


def engine_metric(addresses: Addresses, name: str, **labels: str) -> float:
    """The value of one of the engine's metrics."""
    text = httpx.get(f"{addresses.engine_http}/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Polls until ``holds()``."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("route", ["/generate_stream", "/generate"])
def test_closed_connection_stops_the_engine(addresses: Addresses, query: Query, route: str) -> None:
    before = engine_metric(addresses, "lorauter_engine_tokens_total", kind="generated")
    body = {"inputs": query.text, "parameters": LONG}
    callers, patience = 6, httpx.Timeout(30, read=0.05)
    for _ in range(callers):
        try:
            with httpx.stream(
                "POST", addresses.gateway_http + route, json=body, headers=addresses.headers, timeout=patience
            ) as answer:
                next(answer.iter_lines())
        except httpx.ReadTimeout:
            continue
    until(lambda: engine_metric(addresses, "lorauter_engine_rows") == 0)
    generated = engine_metric(addresses, "lorauter_engine_tokens_total", kind="generated") - before
    assert generated < callers * MOST_TOKENS / 2


def test_cancelled_call_stops_the_engine(addresses: Addresses, client: Client, query: Query) -> None:
    before = engine_metric(addresses, "lorauter_engine_tokens_total", kind="generated")
    stream = client.generate_stream(query.text, base=True, max_new_tokens=100, temperature=50.0)
    assert next(stream).served.composition == pb.COMPOSITION_BASE
    stream.close()
    until(lambda: engine_metric(addresses, "lorauter_engine_rows") == 0)
    assert engine_metric(addresses, "lorauter_engine_tokens_total", kind="generated") - before < 100


def test_transports_answer_alike(addresses: Addresses, client: Client, query: Query) -> None:
    answer = client.generate(query.text, max_new_tokens=query.max_new_tokens)
    pieces = list(client.generate_stream(query.text, max_new_tokens=query.max_new_tokens))
    assert "".join(piece.text for piece in pieces) == answer.text
    assert pieces[-1].usage == answer.usage
    parameters = {"max_new_tokens": query.max_new_tokens}
    tgi = httpx.post(
        f"{addresses.gateway_http}/generate",
        json={"inputs": query.text, "parameters": parameters},
        headers=addresses.headers,
    )
    assert tgi.json()["generated_text"] == answer.text
    assert int(tgi.headers["x-prompt-tokens"]) == answer.usage.prompt_tokens
    served, decision = answer.served.adapters, answer.decision
    expected = decision.adapters if decision.measured else [decision.best_single]
    assert [a.adapter_id for a in served] == [a.adapter_id for a in expected]
    assert tgi.headers["x-lorauter-composition"] == ("exact" if len(served) > 1 else "single")


def test_stop_text_ends_the_answer_and_is_left_out(client: Client, query: Query) -> None:
    whole = client.generate(query.text, base=True, max_new_tokens=20, temperature=50.0, seed=3).text
    stop = whole[len(whole) // 2 :][:3]
    answer = client.generate(query.text, base=True, max_new_tokens=20, temperature=50.0, seed=3, stop=[stop])
    assert answer.finish_reason == pb.FINISH_REASON_STOP_SEQUENCE
    assert whole.startswith(answer.text + stop)
    pieces = client.generate_stream(
        query.text, base=True, max_new_tokens=20, temperature=50.0, seed=3, stop=[stop]
    )
    assert "".join(piece.text for piece in pieces) == answer.text


def test_excluded_adapters_take_no_part(client: Client, query: Query) -> None:
    first = client.route(query.text).adapters[0].adapter_id
    answer = client.generate(query.text, routing={"exclude_adapters": [first]})
    assert first not in [adapter.adapter_id for adapter in answer.served.adapters]


def test_decision_over_http_is_the_routers(addresses: Addresses, client: Client, query: Query) -> None:
    over_grpc = client.route(query.text, explain=True)
    body = httpx.post(
        f"{addresses.gateway_http}/v1/route",
        json={"query": query.text, "explain": True},
        headers=addresses.headers,
    ).json()
    assert [a["adapter_id"] for a in body["adapters"]] == [a.adapter_id for a in over_grpc.adapters]
    assert body["explanation"]["routed_text"] == over_grpc.explanation.routed_text


def test_too_long_prompt_is_typed_everywhere(addresses: Addresses, client: Client) -> None:
    prompt = "add one and two and " * 2000
    with pytest.raises(InvalidArgument) as caught:
        client.generate(prompt)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    openai = httpx.post(
        f"{addresses.gateway_http}/v1/completions",
        json={"model": "auto", "prompt": prompt},
        headers=addresses.headers,
    )
    assert openai.status_code == 400
    assert openai.json()["error"]["code"] == "context_length_exceeded"
    tgi = httpx.post(f"{addresses.gateway_http}/generate", json={"inputs": prompt}, headers=addresses.headers)
    assert (tgi.status_code, tgi.json()["error_type"]) == (422, "validation")


def test_unknown_names_are_typed_and_never_the_base(client: Client, query: Query) -> None:
    with pytest.raises(NotFound) as adapter:
        client.generate(query.text, adapter="nobody")
    assert adapter.value.reason == "UNKNOWN_ADAPTER"
    with pytest.raises(NotFound) as pool:
        client.generate(query.text, pool="nowhere")
    assert pool.value.reason == "UNKNOWN_POOL"


def test_info_tells_the_engines_limits(addresses: Addresses) -> None:
    info = httpx.get(f"{addresses.gateway_http}/info", headers=addresses.headers).json()
    engine = httpx.get(f"{addresses.engine_http}/info", headers=engine_headers()).json()
    for key in ("model_id", "max_input_tokens", "max_total_tokens"):
        assert info[key] == engine[key]
    assert json.dumps(info)
