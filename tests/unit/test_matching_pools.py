"""Matching in simulated pools of 1,500 noisy adapters, easy and hard, with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from lorauter.matching import Table, evidence, strategy, winner

ADAPTERS = 1500
EXAMPLES = 64
CHOOSING = 32


def pool(seed: int, good: int, tells=True) -> tuple[Table, np.ndarray]:
    """A task of a pool in which ``good`` adapters are any good, and the adapters' true means; base last.

    The others are wrong, random, or right by luck now and then; outcomes on an example share its
    difficulty. Likelihoods tell good from bad, with noise.
    """
    random = np.random.default_rng([seed, good])
    means = random.choice([0.0, 0.02, 0.05, 0.12], ADAPTERS + 1)
    rows = random.permutation(ADAPTERS)[:good]
    means[rows] = 0.95 if good == 1 else random.uniform(0.4, 0.97, good)
    means[-1] = 0.1
    difficulty = random.normal(size=(1, EXAMPLES))
    own = random.normal(size=(ADAPTERS + 1, EXAMPLES))
    ranks = np.argsort(np.argsort(difficulty * 0.5 + own, axis=1), axis=1) / EXAMPLES
    scores = (ranks < means[:, None]).astype(float)
    likelihoods = -np.exp(random.normal(0, 0.7, scores.shape)) * (
        0.02 + 2 * (1 - means[:, None]) * (1 - scores)
    )
    if not tells:
        likelihoods[:] = np.nan
    return Table(scores, likelihoods, CHOOSING, ADAPTERS), means


def match(name: str, truth: Table, table: Table | None = None) -> tuple[Table, int, int]:
    """Matches; returns the table, the evaluations and the winner."""
    if table is None:
        nothing = np.full_like(truth.scores, np.nan)
        table = Table(nothing, nothing.copy(), truth.choosing, truth.base)
    before = int((~np.isnan(table.scores)).sum())
    while not (plan := strategy(name).plan(table)).is_done:
        table.scores[plan.cells] = truth.scores[plan.cells]
        table.likelihoods[plan.cells] = truth.likelihoods[plan.cells]
    return table, int((~np.isnan(table.scores)).sum()) - before, winner(table, plan)


@pytest.mark.parametrize(
    ("good", "tells", "share"), [(60, True, 5), (1, True, 5), (60, False, 3), (1, False, 3)]
)
def test_default_costs_a_fraction_of_the_paper_and_loses_no_more_when_the_pool_is_noisy(good, tells, share):
    cost = {"paper": 0, "default": 0}
    lost: dict[str, list[float]] = {"paper": [], "default": []}
    for seed in range(6):
        truth, means = pool(seed, good, tells)
        for name in cost:
            _, evaluations, chosen = match(name, truth)
            cost[name] += evaluations
            lost[name].append(means.max() - means[chosen])
    assert cost["default"] * share < cost["paper"]
    assert np.mean(lost["default"]) <= np.mean(lost["paper"]) + 1e-9
    assert np.max(lost["default"]) <= np.max(lost["paper"]) + 1e-9


@pytest.mark.parametrize("good", [1, 60])
def test_another_adapter_costs_little_when_the_pool_is_matched(good):
    shares = []
    for seed in range(3):
        truth, means = pool(seed, good)
        newcomers = [int(np.argmax(means)), *np.flatnonzero(means < 0.3)[:2]]
        for newcomer in newcomers:
            keep = np.arange(ADAPTERS + 1) != newcomer
            less = Table(truth.scores[keep], truth.likelihoods[keep], CHOOSING, ADAPTERS - 1)
            table, full, _ = match("default", less)
            scores, likelihoods = np.full((2, *truth.scores.shape), np.nan)
            scores[keep], likelihoods[keep] = table.scores, table.likelihoods
            _, more, _ = match("default", truth, Table(scores, likelihoods, CHOOSING, ADAPTERS))
            shares.append(more / full)
    assert max(shares) < 0.04
    assert np.mean(shares) < 0.01


def test_only_good_adapter_is_eligible_when_it_is_the_only_one():
    truth, means = pool(0, good=1)
    table, _, chosen = match("default", truth)
    rows = evidence(table, strategy("default").plan(table))
    assert chosen == np.argmax(means)
    assert [row for row, found in enumerate(rows) if found.eligible] == [chosen]


def test_search_stops_early_when_few_adapters_stand_out():
    random = np.random.default_rng(5)
    scores = np.zeros((301, EXAMPLES))
    scores[:10] = 1.0
    nothing = np.full_like(scores, np.nan)
    _, distinct, _ = match("default", Table(scores, nothing, CHOOSING, base=300))
    close = (random.random(scores.shape) < 0.5).astype(float)
    _, alike, _ = match("default", Table(close, nothing, CHOOSING, base=300))
    assert distinct <= 290 * 4 + 11 * EXAMPLES
    assert distinct < alike


def test_removed_adapters_restart_nothing_when_the_pool_is_matched():
    truth, _ = pool(1, good=60)
    table, full, chosen = match("default", truth)
    keep = np.ones(ADAPTERS + 1, dtype=bool)
    keep[[chosen, 3, 500]] = False
    less = Table(truth.scores[keep], truth.likelihoods[keep], CHOOSING, int(keep.sum()) - 1)
    left = Table(table.scores[keep], table.likelihoods[keep], CHOOSING, less.base)
    _, more, following = match("default", less, left)
    assert more < 0.05 * full
    assert following != -1
