"""A small part of `make fuzz`: whatever callers send, they get an answer or a typed error in time."""

from __future__ import annotations

import asyncio

import pytest

from lorauter_suite.suite import Addresses
from tests.budgets import tries
from tests.security.fuzz_grpc import Said
from tests.security.fuzz_services import Figures, fuzz, prepare

CALLS = tries(150, 60)


@pytest.mark.timeout(600)
def test_no_call_ends_in_a_defect_when_it_holds_anything(addresses: Addresses) -> None:
    found = asyncio.run(fuzz(addresses, prepare(addresses), CALLS, seed=3, pids={}))
    assert {each.service: each.first for each in found if each.defects} == {}
    assert all(each.calls >= CALLS // 2 and len(each.statuses) >= 3 for each in found)


@pytest.mark.parametrize(
    "said",
    [
        Said("/a/B", "INTERNAL"),
        Said("/a/B", "UNKNOWN"),
        Said("GET /", "500"),
        Said("GET /", "broken off"),
        Said("GET /", "none", hung=True),
    ],
)
def test_defect_is_counted_and_described(said: Said) -> None:
    figures = Figures("registry")
    figures.note(said)
    figures.note(Said("GET /", "503"))
    assert (figures.calls, figures.defects, len(figures.first)) == (2, 1, 1)
