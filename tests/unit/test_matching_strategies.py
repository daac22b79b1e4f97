"""What every strategy of matching promises, whatever the scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorauter.errors import InvalidArgument
from lorauter.matching import DEFAULT_STRATEGY, STRATEGY_NAMES, Plan, Table, choosing_count, strategy

UNENDING = 10_000


@st.composite
def truths(draw, most_arms=60):
    """A task of which all is known: scores of any kind, likelihoods known, unknown or partly known."""
    arms, examples = draw(st.integers(1, most_arms)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    means = random.beta(0.5, 0.5, (arms, 1)) if draw(st.booleans()) else np.full((arms, 1), 0.5)
    kind = draw(st.sampled_from(["binary", "graded", "equal"]))
    scores = {
        "binary": (random.random((arms, examples)) < means).astype(float),
        "graded": np.clip(means + random.normal(0, 0.2, (arms, examples)), 0, 1),
        "equal": np.full((arms, examples), 0.5),
    }[kind]
    likelihoods = -random.exponential(1, (arms, examples)) * (1.2 - scores)
    unknown = draw(st.sampled_from([0.0, 0.3, 1.0]))
    likelihoods[random.random(likelihoods.shape) < unknown] = np.nan
    likelihoods[random.random(likelihoods.shape) < 0.01] = -np.inf
    base = draw(st.integers(-1, arms - 1))
    first = draw(st.booleans()) and unknown == 0
    return Table(scores, likelihoods, choosing_count(examples), base, likelihood_first=first)


def empty(truth: Table) -> Table:
    nothing = np.full_like(truth.scores, np.nan)
    return Table(nothing, nothing.copy(), truth.choosing, truth.base, truth.likelihood_first)


def fill(name: str, truth: Table, table: Table, arms=None, batch=None) -> Plan:
    """Measures what the strategy asks for, in rounds or in batches of cells, and checks what it asks."""
    planner, last_round = strategy(name), 0
    allowed = np.ones(len(truth.scores), dtype=bool) if arms is None else arms.copy()
    if truth.base >= 0:
        allowed[truth.base] = True
    for _ in range(UNENDING):
        plan = planner.plan(table, arms)
        if plan.is_done:
            assert plan.left == 0
            return plan
        assert plan.left >= plan.cells.sum()
        assert not plan.cells[~allowed].any()
        assert plan.round == len(plan.alive) >= last_round
        last_round = plan.round
        cells = np.argwhere(plan.cells)[:batch]
        for row, place in cells:
            assert np.isnan(table.scores[row, place])
            table.likelihoods[row, place] = truth.likelihoods[row, place]
            if not plan.likelihood_only:
                table.scores[row, place] = truth.scores[row, place]
    raise AssertionError("the strategy never ends")


@settings(max_examples=60)
@given(truth=truths(), name=st.sampled_from(STRATEGY_NAMES), data=st.data())
def test_plan_ends_and_asks_for_nothing_known_when_some_arms_are_asked_for(truth, name, data):
    arms = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(truth.scores), max_size=len(truth.scores)))
    )
    table = empty(truth)
    seen = np.random.default_rng(0).random(truth.scores.shape) < data.draw(st.sampled_from([0.0, 0.5]))
    table.scores[seen], table.likelihoods[seen] = truth.scores[seen], truth.likelihoods[seen]
    fill(name, truth, table, arms)


@settings(max_examples=60)
@given(truth=truths(most_arms=25), name=st.sampled_from(STRATEGY_NAMES), batch=st.integers(1, 97))
def test_same_cells_are_measured_when_work_is_cut_anywhere(truth, name, batch):
    whole, cut = empty(truth), empty(truth)
    first, second = fill(name, truth, whole), fill(name, truth, cut, batch=batch)
    np.testing.assert_array_equal(whole.scores, cut.scores)
    np.testing.assert_array_equal(first.fell, second.fell)
    assert first.alive == second.alive


@settings(max_examples=60)
@given(truth=truths())
def test_ten_best_and_base_are_measured_on_all_examples_when_matched_by_default(truth):
    table = empty(truth)
    plan = fill(DEFAULT_STRATEGY, truth, table)
    measured = np.all(~np.isnan(table.scores), axis=1)
    stayed = table.adapters & (plan.fell == 0)
    assert measured[stayed].all()
    assert stayed.sum() == min(10, table.adapters.sum())
    assert truth.base < 0 or measured[truth.base]


@settings(max_examples=40)
@given(truth=truths(), name=st.sampled_from(STRATEGY_NAMES))
def test_arms_that_fell_know_their_round_when_matched(truth, name):
    table = empty(truth)
    plan = fill(name, truth, table)
    counts = (~np.isnan(table.scores)).sum(axis=1)
    for number in range(1, plan.round + 1):
        fallen = table.adapters & (plan.fell == number)
        assert plan.alive[number - 1] - (plan.alive[number] if number < plan.round else 0) >= fallen.sum()
    assert truth.base < 0 or plan.fell[truth.base] == 0
    stayed = table.adapters & (plan.fell == 0)
    if stayed.any() and (table.adapters & ~stayed).any():
        assert counts[stayed].min() >= counts[table.adapters & ~stayed].max()


@settings(max_examples=40)
@given(truth=truths(), name=st.sampled_from(STRATEGY_NAMES), data=st.data())
def test_rest_is_not_measured_again_when_an_arm_leaves_or_joins(truth, name, data):
    if len(truth.scores) < 3:
        return
    row = data.draw(st.integers(0, len(truth.scores) - 1).filter(lambda row: row != truth.base))
    keep = np.arange(len(truth.scores)) != row
    base = truth.base - (truth.base > row)
    less = Table(truth.scores[keep], truth.likelihoods[keep], truth.choosing, base, truth.likelihood_first)
    table = empty(less)
    fill(name, less, table)
    joined = empty(truth)
    joined.scores[keep], joined.likelihoods[keep] = table.scores, table.likelihoods
    fill(name, truth, joined)
    left = Table(joined.scores[keep], joined.likelihoods[keep], truth.choosing, base, truth.likelihood_first)
    fill(name, less, left)


def test_others_are_not_measured_when_only_a_new_arm_is_asked_for():
    random = np.random.default_rng(3)
    scores = (random.random((41, 20)) < random.random((41, 1))).astype(float)
    truth = Table(scores, np.full_like(scores, np.nan), 10, base=0)
    table = empty(truth)
    arms = np.arange(41) != 40
    fill("default", truth, table, arms)
    before = ~np.isnan(table.scores)
    arms = np.arange(41) == 40
    plan = fill("default", truth, table, arms)
    after = ~np.isnan(table.scores)
    np.testing.assert_array_equal(after[:40], before[:40])
    assert after[40].any()
    assert plan.is_done


def test_published_counts_are_measured_when_the_paper_matches_48_adapters():
    truth = Table(np.ones((48, 200)), np.full((48, 200), np.nan), choosing=200, base=-1)
    table = empty(truth)
    plan = fill("paper", truth, table)
    assert (~np.isnan(table.scores)).sum() == 48 * 37 + 24 * 33 + 12 * 50 + 6 * 75 == 3618
    assert plan.alive[:4] == (48, 24, 12, 6)


def test_twenty_examples_and_fifty_adapters_are_used_when_the_paper_matches_a_large_pool():
    truth = Table(np.ones((1501, 64)), np.full((1501, 64), np.nan), choosing=32, base=1500)
    table = empty(truth)
    fill("paper", truth, table)
    counts = (~np.isnan(table.scores[:-1, :32])).sum(axis=1)
    assert sorted(counts) == [20] * 1450 + [32] * 50
    assert (~np.isnan(table.scores[:-1, 32:])).sum() == 10 * 32


def test_likelihoods_alone_are_asked_for_first_when_scores_cost_generation():
    random = np.random.default_rng(4)
    scores = random.random((200, 40))
    truth = Table(scores, np.log(scores), 20, base=0, likelihood_first=True)
    table = empty(truth)
    first = strategy("default").plan(table)
    assert first.likelihood_only
    assert not first.cells[0].any()
    fill("default", truth, table)
    measured = np.any(~np.isnan(table.scores), axis=1)
    assert measured.sum() < 0.3 * len(scores)
    assert measured[np.argmax(scores[:, :20].mean(axis=1))]


def test_known_names_are_told_when_a_strategy_is_unknown():
    with pytest.raises(InvalidArgument, match="default, exhaustive, paper") as caught:
        strategy("halving")
    assert caught.value.reason == "UNKNOWN_STRATEGY"


def test_adapters_known_by_score_alone_stay_when_likelihoods_screen():
    scores, likelihoods = np.full((2, 101, 40), np.nan)
    likelihoods[:, :2] = -1.0
    likelihoods[7] = np.nan
    scores[7] = 1.0
    plan = strategy("default").plan(Table(scores, likelihoods, 20, base=-1, likelihood_first=True))
    assert not plan.likelihood_only
    assert plan.fell[7] == 0
    assert not plan.cells[7].any()
