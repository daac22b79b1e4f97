"""Labels of metrics stay bounded, and no counter ever falls."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lorauter.server.bounded import OTHER, Bounded, TopCounter


def told(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Returns what a scrape reads: counts by pool and task."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.labels["pool"], sample.labels["task"]): sample.value
        for family in families
        for sample in family.samples
    }


def counter(most: int) -> tuple[TopCounter, CollectorRegistry]:
    """Returns a counter, and the registry that is scraped."""
    registry = CollectorRegistry()
    return TopCounter("decisions", "Decisions.", "task", most, registry), registry


def test_first_values_pass_and_the_rest_is_other() -> None:
    bounded = Bounded(2)
    assert [bounded(value) for value in ("a", "b", "c", "a", "c")] == ["a", "b", OTHER, "a", OTHER]


def test_few_names_are_all_told_apart() -> None:
    counted, registry = counter(3)
    for name in ("a", "b", "a"):
        counted.inc("demo", name)
    assert told(registry) == {("demo", "a"): 2, ("demo", "b"): 1}


def test_name_that_comes_most_takes_the_place_of_one_that_comes_no_more() -> None:
    counted, registry = counter(1)
    counted.inc("demo", "early")
    assert told(registry) == {("demo", "early"): 1}
    for _ in range(100):
        counted.inc("demo", "frequent")
    assert told(registry) == {("demo", "frequent"): 0, ("demo", OTHER): 100}
    counted.inc("demo", "frequent")
    counted.inc("demo", "early")
    assert told(registry) == {("demo", "frequent"): 1, ("demo", OTHER): 101}


def test_others_are_counted_by_pool() -> None:
    counted, registry = counter(0)
    counted.inc("one", "a")
    counted.inc("two", "b")
    assert told(registry) == {("one", OTHER): 1, ("two", OTHER): 1}


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(0, 5), st.integers(1, 40))
def test_nothing_is_lost_and_nothing_falls(names: list[int], most: int, scrape_every: int) -> None:
    counted, registry = counter(most)
    before: dict[tuple[str, str], float] = {}
    for place, name in enumerate(names):
        counted.inc("demo", str(name))
        if place % scrape_every == 0:
            now = told(registry)
            assert sum(key[1] != OTHER for key in now) <= most
            assert all(value >= before.get(key, 0) for key, value in now.items())
            before |= now
    ever = {**before, **told(registry)}
    assert sum(ever.values()) <= len(names)
    assert most == 0 or sum(told(registry).values()) > 0 or not names


def test_head_of_a_long_tail_is_told() -> None:
    draw = random.Random(1)
    counted, registry = counter(20)
    for _ in range(40):
        for _ in range(200):
            counted.inc("demo", str(int(draw.paretovariate(0.7)) % 5000))
        found = told(registry)
    assert {("demo", str(name)) for name in range(1, 8)} <= found.keys()
