"""Headers, errors and events as they go over the wire."""

from __future__ import annotations

import json
import math
import re

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from lorauter.errors import Exhausted, InvalidArgument, LorauterError, Unavailable, UnprocessableRequest
from lorauter.server.grpc import to_status
from lorauter_gateway.adapters.engine_wire import chat_body, generate_body
from lorauter_gateway.adapters.faults import event_fault, refusal
from lorauter_gateway.adapters.sse import MAX_EVENT_BYTES, EventReader
from lorauter_gateway.adapters.tgi_bodies import GenerateStream, read_answer
from lorauter_gateway.api.dialects import dialect, openai_error, openai_status, tgi_fault
from lorauter_gateway.api.headers import adapter_list
from lorauter_gateway.domain.model import FinishReason, Message, sampling
from lorauter_gateway.domain.plan import WeightedAdapter
from lorauter_gateway.domain.stops import StopTrimmer, without_stop
from lorauter_gateway.ports import BackendCall, BackendFailed

IDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
ITEM = re.compile(
    r'(?:(?P<token>[A-Za-z*][!#$%&\'*+\-.^_`|~0-9A-Za-z:/]*)|"(?P<text>[\x20-\x21\x23-\x5b\x5d-\x7e]*)")'
    r";w=(?P<weight>-?\d{1,12}\.\d{1,3})"
)


def adapter(name: str, weight: float) -> WeightedAdapter:
    return WeightedAdapter(name, 1, weight, "sha256:" + "0" * 64)


def test_adapter_list_looks_as_documented() -> None:
    assert adapter_list([adapter("b", 0.38), adapter("a", 0.62)]) == "a;w=0.62, b;w=0.38"
    assert adapter_list([adapter("2x", 1.0)]) == '"2x";w=1.0'
    assert adapter_list([]) == "base;w=1.0"


@given(st.dictionaries(IDS, st.floats(0, 1), min_size=1, max_size=16))
def test_adapter_list_is_a_structured_field(weights: dict[str, float]) -> None:
    items = adapter_list([adapter(*pair) for pair in weights.items()]).split(", ")
    found = {}
    for item in items:
        match = ITEM.fullmatch(item)
        assert match, item
        found[match["token"] or match["text"]] = float(match["weight"])
    assert found.keys() == weights.keys()
    assert all(math.isclose(found[name], weight, abs_tol=5.1e-4) for name, weight in weights.items())


@given(st.lists(st.text("abcx", min_size=1, max_size=4), max_size=3), st.text("abcx"), st.data())
def test_stream_is_trimmed_like_the_whole_answer(stop: list[str], text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    trimmer = StopTrimmer(stop)
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    streamed = "".join(trimmer.push(piece) for piece in pieces) + trimmer.finish()
    assert streamed == without_stop(text, stop)
    assert not any(ending in streamed for ending in stop)


def test_trimmer_passes_on_at_once_what_cannot_be_a_stop() -> None:
    trimmer = StopTrimmer(["END"])
    assert [trimmer.push(piece) for piece in ("a", "bE", "N", "x", "E")] == ["a", "b", "", "ENx", ""]
    assert trimmer.finish() == "E"
    assert StopTrimmer([]).push("abc") == "abc"


@given(st.lists(st.text(), max_size=6), st.data())
def test_events_are_read_however_the_bytes_are_cut(texts: list[str], data: st.DataObject) -> None:
    stream = b": keep-alive\n\n" + b"".join(
        f"data: {json.dumps({'t': text}, ensure_ascii=False)}\n\n".encode("utf-8", "surrogatepass")
        for text in texts
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    reader = EventReader()
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    found = [event for chunk in chunks for event in reader.feed(chunk)]
    assert [json.loads(event.decode("utf-8", "surrogatepass"))["t"] for event in found] == texts


def test_endless_line_is_refused() -> None:
    with pytest.raises(ValueError, match="an event of over"):
        EventReader().feed(b"data: " + b"x" * MAX_EVENT_BYTES)


@pytest.mark.parametrize(
    ("status", "body", "error", "reason"),
    [
        (422, {"error": "bad", "error_type": "validation"}, UnprocessableRequest, "REFUSED_BY_BACKEND"),
        (422, {"error": "`inputs` must have less than 5 tokens", "error_type": "validation"},
         UnprocessableRequest, "PROMPT_TOO_LONG"),
        (400, {"error": {"message": "bad", "type": "invalid_request_error"}}, InvalidArgument,
         "REFUSED_BY_BACKEND"),
    ],
)  # fmt: skip
def test_callers_fault_is_no_fault_of_the_backend(
    status: int, body: object, error: type[LorauterError], reason: str
) -> None:
    found = refusal(status, json.dumps(body).encode(), {})
    assert isinstance(found, error)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("status", "error", "reason", "elsewhere", "is_fault"),
    [
        (503, Unavailable, "BACKEND_UNAVAILABLE", True, True),
        (502, Unavailable, "BACKEND_UNAVAILABLE", True, True),
        (429, Exhausted, "BACKEND_OVERLOADED", True, False),
        (424, Unavailable, "GENERATION_FAILED", False, True),
        (500, Unavailable, "BACKEND_FAILED", False, True),
        (404, Unavailable, "BACKEND_FAILED", True, True),
        (302, Unavailable, "BACKEND_FAILED", False, True),
    ],
)
def test_backends_fault_says_whether_another_may_do(
    status: int, error: type[LorauterError], reason: str, elsewhere: bool, is_fault: bool
) -> None:
    found = refusal(status, b"<html>not json", {"retry-after": "4"})
    assert isinstance(found, BackendFailed)
    assert isinstance(found.error, error)
    assert (found.error.reason, found.try_elsewhere, found.is_fault) == (reason, elsewhere, is_fault)
    assert found.retry_after_seconds == (4.0 if status == 429 else None)


def test_adapter_that_a_backend_lacks_is_not_the_callers_fault() -> None:
    body = {"error": "not in the store", "error_type": "validation", "reason": "ADAPTER_UNKNOWN"}
    found = refusal(422, json.dumps(body).encode(), {})
    assert isinstance(found, BackendFailed)
    assert (found.error.reason, found.try_elsewhere, found.is_missing, found.is_fault) == (
        "ADAPTER_NOT_SERVABLE", True, True, False,
    )  # fmt: skip


def test_error_events_carry_the_status_that_http_does_not() -> None:
    overloaded = event_fault({"error": "full", "error_type": "overloaded"})
    assert isinstance(overloaded, BackendFailed)
    assert overloaded.try_elsewhere
    chat = event_fault({"error": {"message": "bad template", "http_status_code": 422}})
    assert isinstance(chat, UnprocessableRequest)


def test_dialect_follows_the_route() -> None:
    assert {path: dialect(path) for path in ("/", "/generate", "/v1/models", "/v1/route", "/x")} == {
        "/": "tgi",
        "/generate": "tgi",
        "/v1/models": "openai",
        "/v1/route": "problem",
        "/x": "problem",
    }


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (400, "MISSING_FIELD", (422, "validation")),
        (404, "UNKNOWN_ADAPTER", (422, "validation")),
        (412, "QUERY_REFUSED", (422, "validation")),
        (400, "MALFORMED_JSON", (400, "validation")),
        (413, "BODY_TOO_LARGE", (413, "validation")),
        (429, "GATEWAY_FULL", (429, "overloaded")),
        (503, "GENERATION_FAILED", (424, "generation")),
        (503, "STREAM_BROKEN", (500, "incomplete_generation")),
        (503, "ROUTER_UNAVAILABLE", (503, "unavailable")),
        (500, "INTERNAL", (500, "internal")),
    ],
)
def test_tgi_status_and_type(status: int, reason: str, expected: tuple[int, str]) -> None:
    assert tgi_fault(status, reason) == expected


def test_grpc_status_says_when_to_retry() -> None:
    status = to_status(Exhausted("GATEWAY_FULL", "full", retry_after_seconds="2"))
    info = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.retry_delay.seconds == 2


def test_openai_error_has_openais_codes() -> None:
    assert openai_error(422, "PROMPT_TOO_LONG", "m")["error"]["code"] == "context_length_exceeded"
    assert openai_status(422, "PROMPT_TOO_LONG") == 400
    assert openai_error(404, "UNKNOWN_ADAPTER", "m")["error"] == {
        "message": "m", "type": "invalid_request_error", "param": "model", "code": "model_not_found",
    }  # fmt: skip
    assert openai_error(503, "NO_BACKEND", "m")["error"]["type"] == "server_error"
    assert openai_error(429, "GATEWAY_FULL", "m")["error"]["type"] == "rate_limit_error"


def test_sampling_is_greedy_unless_a_parameter_asks() -> None:
    assert not sampling().do_sample
    assert not sampling(repetition_penalty=1.1, seed=1, top_p=1.0).do_sample
    assert sampling(top_k=4).do_sample
    assert sampling(do_sample=True).do_sample
    greedy = sampling(do_sample=False, temperature=0.9, top_p=0.5, top_k=3)
    assert (greedy.do_sample, greedy.temperature, greedy.top_p, greedy.top_k) == (False, None, None, None)


def test_bodies_hold_the_set_and_only_what_was_asked() -> None:
    call = BackendCall("hi", sampling(seed=0, extra={"truncate": 3}), [adapter("a", 0.5)], "", "org/model")
    adapters = [{"id": "sha256:" + "0" * 64, "weight": 0.5}]
    assert generate_body(call) == {
        "inputs": "hi",
        "parameters": {"truncate": 3, "details": True, "do_sample": False, "adapters": adapters, "seed": 0},
    }
    chat = BackendCall(
        (Message("user", "u"),), sampling(do_sample=True), [adapter("a", 0.5)], "", "org/model"
    )
    body = chat_body(chat, stream=True)
    assert (body["temperature"], body["stream_options"], body["adapters"]) == (
        1.0, {"include_usage": True}, adapters,
    )  # fmt: skip


def test_special_tokens_are_no_text() -> None:
    token = {"id": 2, "text": "</s>", "logprob": 0.0, "special": True}
    details = {"finish_reason": "eos_token", "generated_tokens": 1, "input_length": 4}
    piece = GenerateStream().read({"index": 1, "token": token, "generated_text": "", "details": details})
    assert (piece.text, piece.token) == ("", token)
    assert piece.finish is not None
    assert (piece.finish.finish_reason, piece.finish.usage.prompt_tokens) == (FinishReason.EOS_TOKEN, 4)


def test_prompt_tokens_come_from_the_header() -> None:
    body = {
        "generated_text": "x",
        "details": {"finish_reason": "length", "generated_tokens": 1, "prefill": []},
    }
    assert read_answer(body, {"x-prompt-tokens": "7"}).usage.prompt_tokens == 7
