"""Pools that hurt, from examples to decisions: many thin tasks, twins, one task, no words, no direction."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from lorauter.routing import (
    STRATEGIES,
    Action,
    CompiledPool,
    Decision,
    RouteOptions,
    TaskExamples,
    compile_pool,
    decide,
    fit_profile,
    represent,
    term_frequencies,
)
from lorauter.routing.bm25 import terms_of
from lorauter.routing.model import Adapter, Affinity, Pool, Task
from lorauter.routing.strategies.strategy import Query

DIMENSION = 32
EVERY = sorted(STRATEGIES)
Texts = Mapping[str, Sequence[str]]


def direction(text: str) -> np.ndarray:
    """The unit vector between the directions of a text's words; zeros for a text without any."""
    total = np.zeros(DIMENSION)
    for word in text.split():
        total += np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIMENSION)
    return (total / max(float(np.linalg.norm(total)), 1e-9)).astype(np.float32)


def pool_of(sets: Texts, scores: Mapping[str, Mapping[str, float]]) -> CompiledPool:
    """Puts validation sets through what worker and router do with them."""
    tasks, examples = [], []
    for name, texts in sets.items():
        vectors = np.stack([direction(text) for text in texts])
        whole = represent(vectors, texts)
        terms = [terms_of(term_frequencies(text)) for text in texts]
        examples.append(TaskExamples(name, vectors, terms, terms_of(whole.terms)))
        found = scores.get(name, {}).items()
        measured = tuple(Affinity(id_, int(id_ != "base"), score, 20, 0.1) for id_, score in found)
        tasks.append(
            Task(name, 1, "m", frozenset(), len(texts), whole.centroid, examples[-1].total, measured)
        )
    adapters = tuple(Adapter(name, 1, f"sha256:{name}", True) for name in "abc")
    return compile_pool(Pool("p", "m", (), "ROUTE", fit_profile(examples), tuple(tasks), adapters, ()))


def ask(pool: CompiledPool, text: str, strategy: str = "default") -> Decision:
    """Returns a decision that was checked to be well-formed, and the same when asked again."""
    decision = decide(pool, Query(direction(text), text), RouteOptions(strategy))
    assert decision == decide(pool, Query(direction(text), text), RouteOptions(strategy))
    weights = [one.weight for one in decision.adapters]
    likely = [match.probability for match in decision.tasks]
    figures = [decision.typicality, decision.expected_utility, *weights, *likely]
    assert np.isfinite(figures).all()
    assert all(0 <= value <= 1 + 1e-9 for value in figures)
    assert sum(weights) == pytest.approx(1.0 if decision.action is Action.ADAPTERS else 0.0)
    return decision


def likely(decision: Decision) -> dict[str, float]:
    return {match.task_id: match.probability for match in decision.tasks}


@pytest.fixture(scope="module")
def thin() -> CompiledPool:
    """10,000 tasks with one example each."""
    sets = {f"t{n:05}": [f"find item {n} of shelf {n * 7919 % 10_007}"] for n in range(10_000)}
    return pool_of(sets, {name: {"abc"[n % 3]: 0.9, "base": 0.1} for n, name in enumerate(sets)})


@pytest.mark.parametrize("strategy", EVERY)
def test_task_is_found_by_its_one_example_when_there_are_10_000_such_tasks(
    thin: CompiledPool, strategy: str
) -> None:
    assert thin.profile.figures["examples"] == 0
    for number in (0, 4_999, 9_999):
        decision = ask(thin, f"find item {number} of shelf {number * 7919 % 10_007}", strategy)
        assert decision.tasks[0].task_id == f"t{number:05}"
        assert decision.action is Action.ADAPTERS
    assert ask(thin, "nothing like it", strategy).tasks


TOPIC = ["add one and two", "add three and four", "sum of five and six"]
OTHER = ["name the capital of Peru", "name the capital of Chad", "which town rules Fiji"]


@pytest.mark.parametrize("strategy", EVERY)
def test_twins_share_alike_whatever_their_order_when_validation_sets_are_identical(
    strategy: str,
) -> None:
    sets = {"twin-b": TOPIC, "other": OTHER, "twin-a": TOPIC}
    scores = {"twin-a": {"a": 0.9, "base": 0.1}, "twin-b": {"b": 0.9, "base": 0.1}, "other": {"c": 0.9}}
    decision = ask(pool_of(sets, scores), "add seven and eight", strategy)
    found = likely(decision)
    assert found["twin-a"] == pytest.approx(found["twin-b"], abs=1e-5)
    assert found["twin-a"] > found.get("other", 0.0)
    assert decision.best_single.adapter_id in ("a", "b")
    weights = {one.arm.adapter_id: one.weight for one in decision.adapters}
    assert weights["a"] == pytest.approx(weights["b"], abs=1e-5)
    for order in itertools.permutations(sets):
        assert (
            ask(pool_of({name: sets[name] for name in order}, scores), "add seven and eight", strategy)
            == decision
        )


@pytest.mark.parametrize("strategy", EVERY)
def test_any_task_is_as_likely_when_every_example_of_every_task_is_the_same(strategy: str) -> None:
    sets = {f"t{number}": ["the same words"] * 5 for number in range(3)}
    pool = pool_of(sets, {name: {"a": 0.2, "b": 0.8} for name in sets})
    for text in ("the same words", "others"):
        decision = ask(pool, text, strategy)
        assert list(likely(decision).values()) == pytest.approx([1 / 3] * 3, abs=1e-4)
        assert decision.best_single.adapter_id == "b"


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("texts", [TOPIC, TOPIC[:1]], ids=["several examples", "one example"])
def test_the_only_task_takes_every_query_when_the_pool_has_one(strategy: str, texts: list[str]) -> None:
    pool = pool_of({"only": texts}, {"only": {"a": 0.3, "b": 0.7, "base": 0.1}})
    for text in ("add one and two", "quite another matter"):
        decision = ask(pool, text, strategy)
        assert likely(decision) == {"only": pytest.approx(1.0)}
        assert decision.best_single.adapter_id == "b"


@pytest.mark.parametrize("strategy", EVERY)
def test_task_with_one_example_is_found_when_others_have_many(strategy: str) -> None:
    many = {
        f"many-{n}": [f"{verb} number {k} {verb}ly" for k in range(20)]
        for n, verb in enumerate(["add", "sort"])
    }
    pool = pool_of({**many, "one": ["name the capital of Peru"]}, {"one": {"c": 0.9}, "many-0": {"a": 0.9}})
    decision = ask(pool, "name the capital of Peru", strategy)
    assert (decision.tasks[0].task_id, decision.best_single.adapter_id) == ("one", "c")


@pytest.mark.parametrize("strategy", EVERY)
def test_the_base_serves_when_no_task_was_measured(strategy: str) -> None:
    decision = ask(pool_of({"x": TOPIC, "y": OTHER}, {}), "add one and two", strategy)
    assert (decision.action, decision.best_single.adapter_id) == (Action.BASE, "base")
    assert decision.tasks[0].task_id == "x"


@pytest.mark.parametrize("strategy", EVERY)
def test_query_is_decided_on_when_texts_have_neither_words_nor_direction(strategy: str) -> None:
    sets = {"nothing": [" ", "\t"], "marks": ["?!", "!?"], "words": TOPIC}
    pool = pool_of(sets, {"nothing": {"a": 0.9}, "marks": {"b": 0.9}, "words": {"c": 0.9}})
    for text in (" ", "?!", "add one and two"):
        assert ask(pool, text, strategy).tasks
    assert ask(pool, "add one and two", strategy).best_single.adapter_id == "c"
    empty = pool_of({"nothing": [" "], "more": ["\n", "\t"]}, {"nothing": {"a": 0.9}})
    assert list(likely(ask(empty, "add", strategy)).values()) == pytest.approx([0.5, 0.5], abs=1e-4)
