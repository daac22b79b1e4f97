"""What an index is searched with, and decisions on what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lorauter.routing import CompiledPool, RouteOptions, compile_pool, decide
from lorauter.routing.bm25 import NO_TERMS, terms_of
from lorauter.routing.candidates import Probe, probe_of, restricted, rows_of, suffices
from lorauter.routing.fitting import make_profile
from lorauter.routing.model import Adapter, Affinity, Pool, Task
from lorauter.routing.strategies import STRATEGIES
from lorauter.routing.strategies.strategy import Query
from lorauter.routing.whitening import packed

TASKS, DIMENSION, ARMS = 120, 12, 7


def pool(policy: str = "ROUTE", **constants: float) -> CompiledPool:
    """Tasks of different lengths and words, a fifth of them unmeasured."""
    draw = np.random.default_rng(5)
    spread = draw.normal(size=(DIMENSION, DIMENSION))
    fitted = {
        "shrinkage": 0.3,
        "dense_weight": 9.0,
        "lexical_weight": 7.0,
        "tasks": 3.0,
        "default_tasks": 3.0,
    }
    profile = make_profile({**fitted, **constants}, {})
    tasks = []
    for number in range(TASKS):
        terms = {int(term): float(draw.integers(1, 6)) for term in draw.choice(90, 12, replace=False)}
        arms = draw.choice(ARMS, 4, replace=False)
        affinities = tuple(Affinity(f"a{arm}", 1, float(draw.random()), 9, 0.1) for arm in arms)
        affinities += (Affinity("base", 0, 0.2, 9, 0.1),)
        centroid = (draw.normal(size=DIMENSION) * draw.uniform(0.1, 0.3)).astype(np.float32)
        tags = frozenset({"even"} if number % 2 == 0 else {"odd", "rare"})
        known = affinities if number % 5 else ()
        tasks.append(Task(f"t{number:03d}", 1, "m", tags, 9, centroid, terms, known, f"address-{number}"))
    adapters = tuple(Adapter(f"a{arm}", 1, f"sha256:{arm}", routable=True) for arm in range(ARMS))
    profile = replace(profile, scatter=packed(spread @ spread.T / DIMENSION))
    return compile_pool(Pool("p", "base", (), policy, profile, tuple(tasks), adapters, ()))


def queries(count: int) -> list[Query]:
    draw = np.random.default_rng(6)
    return [
        Query(
            draw.normal(size=DIMENSION).astype(np.float32),
            terms=terms_of({int(term): float(draw.integers(1, 3)) for term in draw.choice(120, 8, False)}),
        )
        for _ in range(count)
    ]


def found_by(pool: CompiledPool, probe: Probe, limit: int) -> list[int]:
    """Rows of the largest products of what an index holds with what it is searched with."""
    centroids = np.stack([task.centroid for task in pool.tasks])
    words = np.array([sum(n * t.terms.get(term, 0.0) for term, n in probe.terms.items()) for t in pool.tasks])
    products = [*(centroids @ vector for vector in probe.dense), words]
    return sorted({int(row) for each in products for row in np.argsort(-each)[:limit]})


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize(
    "fields",
    [{}, {"tags": frozenset({"even"})}, {"exclude_adapters": frozenset({"a1"})}, {"max_adapters": 1}],
)
def test_decision_is_that_of_all_tasks_when_all_are_candidates(strategy: str, fields: dict[str, Any]) -> None:
    whole = pool()
    for query in queries(20):
        options = RouteOptions(strategy=strategy, explain=True, **fields)
        few = restricted(whole, np.arange(TASKS), query.words())
        assert decide(few, query, options) == decide(whole, query, options)


def test_tasks_score_as_among_all_when_others_are_left_out() -> None:
    whole = pool()
    rows = np.array([3, 4, 40, 77, 119])
    for query in queries(20):
        few = restricted(whole, rows, query.words())
        np.testing.assert_array_equal(
            few.lexicon.scores(query.words()), whole.lexicon.scores(query.words())[rows]
        )
        np.testing.assert_array_equal(few.whitened, whole.whitened[rows])
        among = {m.task_id: m for m in decide(whole, query, RouteOptions(task_count=TASKS)).tasks}
        matches = decide(few, query, RouteOptions(task_count=TASKS)).tasks
        assert {m.task_id for m in matches} == {whole.tasks[row].task_id for row in rows}
        total = sum(among[m.task_id].probability for m in matches)
        for match in matches:
            assert match.probability == pytest.approx(among[match.task_id].probability / total, rel=1e-4)
            assert match.similarity == pytest.approx(among[match.task_id].similarity, abs=1e-6)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_most_probable_tasks_are_candidates_when_few_are_searched_for(strategy: str) -> None:
    whole = pool()
    options = RouteOptions(strategy=strategy)
    hits: list[bool] = []
    for query in queries(60):
        rows = found_by(whole, probe_of(whole, query.vector, query.words()), 20)
        names = {whole.tasks[row].task_id for row in rows}
        hits += [match.task_id in names for match in decide(whole, query, options).tasks[:3]]
        assert len(rows) <= 60
    assert np.mean(hits) > 0.95


def test_products_rank_as_whitened_ones_when_the_probe_is_searched_with() -> None:
    whole = pool()
    assert whole.whitener is not None
    centroids = np.stack([task.centroid for task in whole.tasks])
    for query in queries(5):
        direction = query.vector / np.linalg.norm(query.vector)
        wanted = ((centroids - whole.mean) @ whole.whitener) @ ((direction - whole.mean) @ whole.whitener)
        found = centroids @ probe_of(whole, query.vector, NO_TERMS).dense[0]
        np.testing.assert_allclose(found - found.mean(), wanted - wanted.mean(), atol=1e-4)


def test_probe_leaves_out_words_when_no_task_uses_them() -> None:
    whole = pool()
    probe = probe_of(whole, np.ones(DIMENSION, np.float32), terms_of({5: 4.0, 4_000_000_000: 1.0}))
    assert probe.terms.ids.tolist() == [5]
    assert probe.terms[5] == pytest.approx(2 * whole.lexicon.idf[np.searchsorted(whole.lexicon.ids, 5)])
    assert not probe_of(whole, np.ones(DIMENSION, np.float32), NO_TERMS).terms


def test_only_tasks_of_the_snapshot_are_kept_when_the_index_is_ahead() -> None:
    found: Sequence[tuple[str, str]] = [
        ("t007", "address-7"),
        ("t003", "address-3"),
        ("t004", "of a newer version"),
        ("new", "address-1"),
    ]
    assert rows_of(pool(), found).tolist() == [3, 7]
    assert rows_of(pool(), []).tolist() == []


def test_no_task_takes_part_when_none_is_a_candidate() -> None:
    whole = pool()
    query = queries(1)[0]
    few = restricted(whole, rows_of(whole, []), query.words())
    assert decide(few, query).tasks == ()
    assert few.lexicon.scores(query.words()).tolist() == []


def test_candidates_do_not_suffice_when_none_was_measured() -> None:
    whole = pool()
    query = queries(1)[0]
    unmeasured = restricted(whole, np.array([0, 5, 10]), query.words())
    assert not suffices(unmeasured, decide(unmeasured, query))
    measured = restricted(whole, np.array([1, 2, 3]), query.words())
    assert suffices(measured, decide(measured, query))
    barred = RouteOptions(exclude_adapters=frozenset({"base", *(f"a{arm}" for arm in range(ARMS))}))
    assert not suffices(measured, decide(measured, query, barred))


@pytest.mark.parametrize(("policy", "enough"), [("ALL_ROUND", False), ("ROUTE", True)])
def test_candidates_do_not_suffice_when_the_policy_asks_for_what_does_best_over_all(
    policy: str, enough: bool
) -> None:
    quantiles = {f"best_score_q{level:.3f}": 1e6 for level in (0.0, 0.005, 0.01, 0.02, 0.05, 0.95, 0.99, 1.0)}
    quantiles |= {f"best_score_q{step / 10:.3f}": 1e6 for step in range(1, 10)}
    whole = pool(policy, untypical_below=0.02, **quantiles)
    query = queries(1)[0]
    few = restricted(whole, np.array([1, 2, 3]), query.words())
    decision = decide(few, query)
    assert decision.typicality == 0
    assert suffices(few, decision) is enough
