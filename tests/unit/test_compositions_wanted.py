"""What gateways want and workers write passes through Redis whole, and nothing hostile passes."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorauter.compositions_wanted import (
    WEIGHT_DECIMALS,
    Member,
    Refusal,
    Wanted,
    Written,
    asked_key,
    dump_fate,
    key_of,
    read_fate,
    tenant_of,
)
from lorauter.errors import InvalidArgument
from lorauter.lora import recipe

FIRST = Member("first", 1, "sha256:" + "a" * 64, 0.25)
SECOND = Member("second", 3, "sha256:" + "b" * 64, 0.75)
WANTED = Wanted("acme", "main", "vllm", 64, 1, (FIRST, SECOND))
WRITTEN = Written("mix-0123456789abcdef", 32, (FIRST, SECOND))


def encoded(fields) -> dict[bytes, bytes]:
    """A stream entry as Redis returns it."""
    return {name.encode(): str(value).encode() for name, value in fields.items()}


def changed(**fields) -> dict[bytes, bytes]:
    """The stream entry with other fields."""
    return encoded(WANTED.entry() | fields)


def test_a_wanted_composition_survives_its_stream() -> None:
    assert Wanted.read(encoded(WANTED.entry())) == WANTED
    assert set(WANTED.entry()) == {"tenant", "pool", "backend_kind", "max_rank", "shards", "members"}
    assert json.loads(WANTED.entry()["members"])[1] == {
        "adapter_id": "second",
        "version": 3,
        "digest": SECOND.digest,
        "weight": 0.75,
    }


@pytest.mark.parametrize("fate", [WRITTEN, Refusal("COMPOSITE_RANK_TOO_LARGE", "too large", 12.5)])
def test_a_fate_survives_its_hash(fate) -> None:
    assert read_fate(dump_fate(fate).encode()) == fate


def test_a_refusal_counts_for_a_while() -> None:
    refusal = Refusal("ADAPTER_RETIRED", "retired", until=100.0)
    assert refusal.counts(99.0)
    assert not refusal.counts(100.0)
    assert not refusal.counts()


def test_a_key_is_of_the_members_in_any_order_and_of_nothing_else() -> None:
    key = key_of(WANTED)
    assert key == f"acme/main/vllm/64/1/{FIRST.digest}:0.250000,{SECOND.digest}:0.750000"
    assert key_of(dataclasses.replace(WANTED, members=(SECOND, FIRST))) == key
    alias = dataclasses.replace(FIRST, adapter_id="alias", version=9, weight=0.25 + 1e-9)
    assert key_of(dataclasses.replace(WANTED, members=(alias, SECOND))) == key
    others: list[dict[str, Any]] = [
        {"tenant": "other"},
        {"pool": "other"},
        {"backend_kind": "tgi"},
        {"max_rank": 128},
        {"shards": 2},
        {"members": (FIRST,)},
        {"members": (dataclasses.replace(FIRST, weight=0.250001), SECOND)},
    ]
    keys = {key_of(dataclasses.replace(WANTED, **other)) for other in others}
    assert len(keys | {key}) == len(others) + 1
    assert tenant_of(key) == "acme"
    assert len({asked_key(each) for each in keys}) == len(keys)
    zero = dataclasses.replace(FIRST, weight=-0.0000001)
    assert "-0" not in key_of(dataclasses.replace(WANTED, members=(zero,)))


def test_weights_are_rounded_as_a_recipe_rounds_them() -> None:
    assert WEIGHT_DECIMALS == recipe.WEIGHT_DECIMALS


MEMBER = {"adapter_id": "a", "version": 1, "digest": FIRST.digest, "weight": 1.0}
HOSTILE = [
    {"tenant": ""},
    {"tenant": "a/b"},
    {"tenant": "x" * 257},
    {"pool": "Main"},
    {"pool": "../../etc"},
    {"pool": "main\n"},
    {"backend_kind": "engine"},
    {"max_rank": "0"},
    {"max_rank": "1e3"},
    {"max_rank": "99999999999999999999"},
    {"shards": "-1"},
    {"shards": "two"},
    {"extra": "field"},
    {"members": "[]"},
    {"members": "null"},
    {"members": "{"},
    {"members": "[" * 10_000},
    {"members": json.dumps([MEMBER] * 17)},
    {"members": json.dumps([MEMBER | {"adapter_id": "x" * 64}])},
    {"members": json.dumps([MEMBER | {"digest": "sha256:../.."}])},
    {"members": json.dumps([MEMBER | {"weight": float("nan")}])},
    {"members": json.dumps([MEMBER | {"weight": float("inf")}])},
    {"members": json.dumps([MEMBER | {"weight": 1e300}])},
    {"members": json.dumps([MEMBER | {"version": 0}])},
    {"members": json.dumps([MEMBER | {"more": 1}])},
    {"members": json.dumps([MEMBER]) + " " * 20_000},
]


@pytest.mark.parametrize("fields", HOSTILE)
def test_a_hostile_entry_is_refused(fields) -> None:
    assert Wanted.read(changed(members=json.dumps([MEMBER])))
    with pytest.raises(InvalidArgument) as caught:
        Wanted.read(changed(**fields))
    assert caught.value.reason == "BAD_WANTED_COMPOSITION"


def test_an_entry_without_all_fields_or_of_other_bytes_is_refused() -> None:
    for name in WANTED.entry():
        fields = changed()
        del fields[name.encode()]
        with pytest.raises(InvalidArgument):
            Wanted.read(fields)
    with pytest.raises(InvalidArgument):
        Wanted.read(changed() | {b"tenant": b"\xff\xfe"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b"[" * 100_000,
        dump_fate(WRITTEN).replace("mix-", "../").encode(),
        dump_fate(WRITTEN).replace("32", "0").encode(),
        dump_fate(WRITTEN).replace('"rank"', '"until"').encode(),
        b'{"reason": "lower", "message": "", "until": 1}',
        b'{"reason": "A", "message": "", "until": NaN}',
        dump_fate(WRITTEN).encode() + b" " * 40_000,
    ],
)
def test_a_hostile_fate_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_fate(data)
    assert caught.value.reason == "BAD_WRITTEN_COMPOSITION"


@given(st.dictionaries(st.binary(max_size=12), st.binary(max_size=40)))
def test_whatever_a_stream_holds_is_read_or_refused(fields: dict[bytes, bytes]) -> None:
    for entry in (fields, encoded(WANTED.entry()) | fields):
        with suppress(InvalidArgument):
            assert isinstance(Wanted.read(entry), Wanted)


@given(st.binary(max_size=60))
def test_whatever_a_hash_holds_is_read_or_refused(data: bytes) -> None:
    with suppress(InvalidArgument):
        assert isinstance(read_fate(data), Written | Refusal)
