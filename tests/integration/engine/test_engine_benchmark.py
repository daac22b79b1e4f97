"""The engine's benchmark compares what it says: the same answers, exact, from every side with the sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.engine import SIDES, bench, demo_pool
from benchmarks.engine_models import random_prompts, weighted_sets


def test_sides_answer_alike_and_exactly_on_the_demo_model(tmp_path: Path) -> None:
    pool, prompts = demo_pool(tmp_path)
    said: list[str] = []
    figures = bench(pool, prompts, new_tokens=6, seed=0, rounds=1, say=said.append)
    assert set(figures["generate_tokens_per_s"]) == set(SIDES)
    assert all(rate > 0 for rate in figures["generate_tokens_per_s"].values())
    assert figures["agreement"] == 1.0
    assert set(figures["exactness"]) == {"engine", "composite"}
    assert all(0 < error < 1e-4 for error in figures["exactness"].values())
    assert said[-1] == "round 1 of 1"


def test_no_two_rows_share_an_adapter_when_there_are_enough() -> None:
    names = [f"adapter-{number}" for number in range(48)]
    sets = weighted_sets(names, 16, 3, seed=1)
    assert sorted(name for weighted in sets for name, _ in weighted) == sorted(names)
    assert all(sum(w for _, w in weighted) == pytest.approx(1, abs=1e-5) for weighted in sets)
    fewer = weighted_sets(names[:36], 16, 3, seed=1)
    assert all(len({name for name, _ in weighted}) == 3 for weighted in fewer)
    assert len(set(random_prompts(16, 0))) == 16
