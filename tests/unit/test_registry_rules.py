"""The registry's pure rules: states, served version, page tokens, examples, fields."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from lorauter.errors import FailedPrecondition, InvalidArgument, PayloadTooLarge
from lorauter.store.serving import served_version
from lorauter_registry.domain.adapter_requests import RegisterAdapter
from lorauter_registry.domain.adapters import advance, can_become, state_at
from lorauter_registry.domain.affinity_csv import read_affinities
from lorauter_registry.domain.affinity_requests import AffinityInput
from lorauter_registry.domain.examples import ExampleSet, JsonLines
from lorauter_registry.domain.pages import decode_token, encode_token
from lorauter_registry.domain.requests import CreatePool, CreateTask, RegisterBackend
from lorauter_registry.domain.resources import AdapterState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MEGABYTE = 1024 * 1024


@pytest.mark.parametrize(
    ("aliases", "states", "expected"),
    [
        ({}, [], 0),
        ({}, [(1, AdapterState.ACTIVE), (2, AdapterState.ACTIVE)], 2),
        ({"champion": 1}, [(1, AdapterState.ACTIVE), (2, AdapterState.ACTIVE)], 1),
        ({"champion": 1}, [(1, AdapterState.RETIRED), (2, AdapterState.ACTIVE)], 2),
        ({"other": 1}, [(1, AdapterState.ACTIVE), (2, AdapterState.DRAINING)], 1),
        ({"champion": 9}, [(1, AdapterState.QUARANTINED)], 0),
    ],
)
def test_served_version_is_the_champion_or_the_newest_active_one(
    aliases: dict[str, int], states: list[tuple[int, AdapterState]], expected: int
) -> None:
    assert served_version(aliases, dict(states)) == expected


def test_versions_move_only_forward() -> None:
    path = (AdapterState.VERIFIED, AdapterState.ACTIVE, AdapterState.DRAINING, AdapterState.RETIRED)
    assert advance(AdapterState.REGISTERED, *path) is AdapterState.RETIRED
    assert not any(can_become(AdapterState.QUARANTINED, state) for state in AdapterState)
    for state in set(AdapterState) - {AdapterState.QUARANTINED}:
        assert can_become(state, AdapterState.QUARANTINED)
    with pytest.raises(FailedPrecondition) as caught:
        advance(AdapterState.RETIRED, AdapterState.ACTIVE)
    assert caught.value.reason == "INVALID_TRANSITION"


def test_draining_version_is_retired_when_its_pins_have_ended() -> None:
    later = NOW + timedelta(seconds=1)
    assert state_at(AdapterState.DRAINING, later, NOW) is AdapterState.DRAINING
    assert state_at(AdapterState.DRAINING, NOW, NOW) is AdapterState.RETIRED
    assert state_at(AdapterState.ACTIVE, NOW, NOW) is AdapterState.ACTIVE


@given(st.text(max_size=40).filter(lambda text: "\x00" not in text), st.integers(0, 2**31 - 1))
def test_page_token_survives_the_way_there_and_back(name: str, number: int) -> None:
    token = encode_token("list", [name, number, NOW])
    assert decode_token("list", token, [str, int, datetime]) == [name, number, NOW]


@given(st.text(max_size=60))
def test_forged_page_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_token("list", token, [str])
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


def test_page_token_is_refused_when_it_is_another_lists() -> None:
    token = encode_token("tasks of a", ["x"])
    cases: list[tuple[str, list[type]]] = [
        ("tasks of b", [str]),
        ("tasks of a", [int]),
        ("tasks of a", [str, str]),
    ]
    for scope, kinds in cases:
        with pytest.raises(InvalidArgument):
            decode_token(scope, token, kinds)


def lines(*values: object) -> bytes:
    return b"\n".join(json.dumps(value).encode() for value in values)


def read(data: bytes, piece: int = 7, max_bytes: int = MEGABYTE) -> ExampleSet:
    reader = JsonLines(ExampleSet(max_bytes))
    for start in range(0, len(data), piece):
        reader.feed(data[start : start + piece])
    return reader.finish()


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1), st.integers(1, 50))
def test_examples_are_the_same_however_the_body_is_cut(rows: list[tuple[str, str]], piece: int) -> None:
    rows = [(f"x{a}".replace("\x00", ""), f"y{b}".replace("\x00", "")) for a, b in rows]
    data = lines(*({"input": a, "target": b, "more": 1} for a, b in rows))
    whole = read(data, len(data))
    assert whole.rows == rows
    assert read(data, piece).digest == whole.digest
    assert read(data + b"\n\n", piece).digest == whole.digest


def test_digest_differs_when_text_moves_between_examples() -> None:
    first = read(lines({"input": "ab", "target": "c"}))
    second = read(lines({"input": "a", "target": "bc"}))
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"input": "x", "target"', "MALFORMED_JSON"),
        (b"\xff\xfe", "MALFORMED_JSON"),
        (b"[" * 100_000, "MALFORMED_JSON"),
        (b"3", "INVALID_EXAMPLE"),
        (lines({"input": "x"}), "MISSING_FIELD"),
        (lines({"input": "", "target": "y"}), "INVALID_EXAMPLE"),
        (lines({"input": " \t", "target": "y"}), "INVALID_EXAMPLE"),
        (lines({"input": "x", "target": ""}), "INVALID_EXAMPLE"),
        (lines({"input": 5, "target": "y"}), "INVALID_EXAMPLE"),
        (lines({"input": None, "target": "y"}), "INVALID_EXAMPLE"),
        (lines({"input": "x\x00", "target": "y"}), "INVALID_EXAMPLE"),
        (b'{"input": "\\ud800", "target": "y"}', "INVALID_EXAMPLE"),
        (lines({"input": "x" * 65_537, "target": "y"}), "INVALID_EXAMPLE"),
    ],
)
def test_error_names_the_line_when_an_example_is_bad(bad: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(lines({"input": "fine", "target": "fine"}) + b"\n\n" + bad, 4_096)
    assert caught.value.reason == reason
    assert "line 3" in caught.value.message
    assert caught.value.metadata["line"] == "3"


def test_line_is_refused_before_it_is_held_when_it_never_ends() -> None:
    reader = JsonLines(ExampleSet(10**9))
    with pytest.raises(InvalidArgument):
        reader.feed(b"x" * MEGABYTE)


def test_set_is_refused_when_it_is_empty_or_too_large() -> None:
    with pytest.raises(InvalidArgument) as empty:
        read(b"\n\n")
    assert empty.value.reason == "EMPTY_VALIDATION_SET"
    with pytest.raises(PayloadTooLarge):
        read(lines({"input": "x" * 100, "target": "y"}), max_bytes=100)
    full = ExampleSet(10**9)
    full.rows = [("x", "y")] * 100_000
    with pytest.raises(InvalidArgument) as many:
        full.add("x", "y")
    assert many.value.reason == "TOO_MANY_EXAMPLES"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "MISSING_FIELD"),
        (b"task_id,adapter_id,score\nt,a,1\n", "MISSING_FIELD"),
        (b"task_id,adapter_id,score,count,colour\n", "INVALID_FIELD"),
        (b"task_id,adapter_id,score,count\nt,a,1\n", "MALFORMED_CSV"),
        (b"task_id,adapter_id,score,count\n\xff", "MALFORMED_CSV"),
        (b'task_id,adapter_id,score,count\n"t,a,1,2\n', "MALFORMED_CSV"),
        (b"task_id,adapter_id,score,count,count\n", "INVALID_FIELD"),
    ],
)
def test_csv_is_refused_when_it_is_malformed(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_affinities(body)
    assert caught.value.reason == reason


def test_csv_is_read_by_its_header() -> None:
    data = (
        b"\xef\xbb\xbfscore,task_id,adapter_id,count,standard_error\r\n0.5,t,a,20,\r\n\r\n1,t,base,3,0.1\r\n"
    )
    assert read_affinities(data) == (
        AffinityInput(task_id="t", adapter_id="a", score=0.5, count=20),
        AffinityInput(task_id="t", adapter_id="base", score=1, count=3, standard_error=0.1),
    )


TASK = {"id": "t", "pool": "p", "metric": "exact_match"}


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        (CreateTask, {**TASK, "id": "Bad Id"}, "INVALID_ID"),
        (CreateTask, {**TASK, "pool": "../x"}, "INVALID_ID"),
        (CreateTask, {**TASK, "description": "a\x00b"}, "INVALID_TEXT"),
        (CreateTask, {**TASK, "description": "\ud800"}, "INVALID_TEXT"),
        (CreateTask, {**TASK, "prompt": {"system": "x"}}, "INVALID_FIELD"),
        (CreatePool, {"id": "p\x00", "base_model": "b"}, "INVALID_TEXT"),
        (RegisterAdapter, {"id": "auto", "pool": "p", "path": "/x"}, "RESERVED_ID"),
        (RegisterAdapter, {"id": "mix-1", "pool": "p", "path": "/x"}, "RESERVED_ID"),
        (RegisterAdapter, {"id": "a", "pool": "p"}, "MISSING_FIELD"),
        (RegisterAdapter, {"id": "a", "pool": "p", "path": "/x", "hub": "a/b"}, "INVALID_FIELD"),
        (RegisterBackend, {"id": "b", "pool": "p", "kind": "TGI", "url": "ftp://x"}, "INVALID_URL"),
        (RegisterBackend, {"id": "b", "pool": "p", "kind": "TGI", "url": "http://u:p@x"}, "INVALID_URL"),
        (RegisterBackend, {"id": "b", "pool": "p", "kind": "TGI", "url": "http://[x"}, "INVALID_URL"),
        (RegisterBackend, {"id": "b", "pool": "p", "kind": "TGI", "url": "http://x:99999"}, "INVALID_URL"),
    ],
)
def test_request_is_refused_with_a_reason(
    kind: type[BaseModel], data: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        kind.model_validate(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "change",
    [
        {"tags": ["x"] * 33},
        {"tags": [""]},
        {"tags": ["x" * 64]},
        {"generation_settings": {"max_new_tokens": 4_097}},
        {"generation_settings": {"stop": ["a"] * 5}},
        {"prompt": {"format": "TELEGRAM"}},
        {"colour": "red"},
        {"metric": ""},
    ],
)
def test_request_is_refused_when_out_of_bounds(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CreateTask.model_validate({**TASK, **change})


def test_request_is_normalised() -> None:
    task = CreateTask.model_validate({**TASK, "tags": ["b", "a", "b"], "prompt": {"format": "UNSPECIFIED"}})
    assert task.tags == ("b", "a")
    assert task.prompt.format == "RAW"
    backend = {"id": "b", "pool": "p", "kind": "ENGINE", "url": "http://localhost:80/"}
    assert RegisterBackend.model_validate(backend).url == "http://localhost:80"
