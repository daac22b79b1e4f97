"""The benchmark of many tenants follows them as a router does, on an index process of its own."""

from __future__ import annotations

import pytest

from benchmarks import tenants
from benchmarks.latency_texts import make_snapshot, make_texts


def test_figures_are_of_as_many_tenants_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "POLLS", 3)
    base = make_snapshot(4, make_texts(50, 0, None).short, tenants.ENCODER, 0)
    figures = tenants.measured(base, 2)
    assert figures.keys() == {"memory_mb", "poll_ms", "poll_cpu_ms", "first_seconds", "change_seconds"}
    assert figures["poll_ms"]["p50"] > 0
    assert figures["change_seconds"] > 0
