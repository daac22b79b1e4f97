"""What a matching's evidence promises: what is eligible, what routing uses, who is chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorauter.matching import Table, choosing_count, evidence, example_key, mean_and_error, strategy, winner
from lorauter.matching.evidence import lift_and_error, places
from lorauter.matching.shrinking import usual_scores

NAN = math.nan


def known(scores, likelihoods=None, choosing=None, base=0) -> Table:
    """A table of which all is known unless it says NaN."""
    scores = np.array(scores, dtype=float)
    if likelihoods is None:
        likelihoods = np.full_like(scores, NAN)
    if choosing is None:
        choosing = choosing_count(scores.shape[1])
    return Table(scores, np.array(likelihoods, dtype=float), choosing, base)


def found(table: Table, name="exhaustive"):
    return evidence(table, strategy(name).plan(table))


@pytest.mark.parametrize(
    ("examples", "choosing"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (20, 10), (64, 32)]
)
def test_half_of_the_examples_choose_when_there_are_so_many(examples, choosing):
    assert choosing_count(examples) == choosing


def test_key_tells_contents_apart_when_joined_texts_are_equal():
    assert example_key("ab", "c") != example_key("a", "bc")
    assert example_key("ab", "c") == example_key("ab", "c")
    assert -(2**63) <= example_key("", "") < 2**63


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_error_is_that_of_the_mean_when_scores_are_many(scores):
    mean, error = mean_and_error(scores)
    assert mean == pytest.approx(np.mean(scores))
    assert error == pytest.approx(np.std(scores, ddof=1) / np.sqrt(len(scores)), abs=1e-9)


def test_error_is_the_largest_possible_when_one_score_is_known():
    assert mean_and_error([1.0]) == (1.0, 0.5)


@pytest.mark.parametrize("wins", [2, 3, 5, 16])
def test_adapter_is_eligible_when_it_wins_all_of_two_or_more(wins):
    lift, error = lift_and_error(np.ones(wins))
    assert lift == 1.0
    assert 0.0 < error < lift


def test_adapter_is_not_eligible_when_one_example_judges():
    lift, error = lift_and_error(np.ones(1))
    assert lift < error


@pytest.mark.parametrize("examples", [2, 3, 4, 6, 10, 32])
@pytest.mark.parametrize("score", [0.1, 0.5, 0.9])
def test_few_adapters_are_eligible_by_luck_when_they_are_like_the_base(examples, score):
    random = np.random.default_rng([examples, int(100 * score)])
    right = random.random((2, 4000, examples)) < score
    lifts = [lift_and_error(row) for row in right[0].astype(float) - right[1]]
    assert np.mean([lift > error for lift, error in lifts]) < 0.08


@pytest.mark.parametrize("examples", [10, 20, 64])
def test_right_adapter_is_eligible_when_it_scores_97_against_12(examples):
    random = np.random.default_rng(examples)
    eligible = []
    for _ in range(200):
        scores = random.random((2, examples)) < [[0.12], [0.97]]
        eligible.append(found(known(scores))[1].eligible)
    assert np.mean(eligible) > 0.95


def test_nothing_is_eligible_when_one_example_is_all_there_is():
    base, adapter = found(known([[0.0], [1.0]]))
    assert not base.eligible
    assert not adapter.eligible
    assert adapter.lift is None
    assert adapter.judged_score is None
    assert adapter.judged_count == 0
    assert adapter.shrunk_score <= base.shrunk_score == 0.0
    assert adapter.standard_error == 0.5


def test_lift_is_paired_and_judged_alone_when_the_choosing_half_looks_better():
    base = [0, 0, 0, 0, 1, 0, 1, 0]
    adapter = [1, 1, 1, 1, 1, 0, 1, 0]
    row = found(known([base, adapter]))[1]
    assert row.score == 0.75
    assert row.judged_score == 0.5
    assert row.judged_count == 4
    assert row.lift == 0.0
    assert row.lift_error > 0.0
    assert not row.eligible
    assert row.shrunk_score <= 0.25


def test_adapter_is_worth_at_most_the_base_when_it_fell():
    random = np.random.default_rng(1)
    scores = (random.random((60, 40)) < np.linspace(0.1, 0.9, 60)[:, None]).astype(float)
    truth = known(scores, base=30)
    table = known(np.full_like(scores, NAN), base=30)
    while not (plan := strategy("default").plan(table)).is_done:
        table.scores[plan.cells] = truth.scores[plan.cells]
    rows = evidence(table, plan)
    fallen = [row for row in rows if row.round]
    assert len(fallen) == 49
    assert not any(row.eligible for row in fallen)
    assert all(row.shrunk_score <= rows[30].shrunk_score for row in fallen)
    assert rows[30].shrunk_score == rows[30].score
    assert rows[30].round == 0
    assert any(row.eligible for row in rows)


def test_thin_scores_are_drawn_further_when_adapters_differ_little():
    random = np.random.default_rng(2)
    scores = (random.random((40, 200)) < 0.5).astype(float)
    scores[20:, 8:] = NAN
    usual = usual_scores(known(scores, base=-1))
    assert usual.score == pytest.approx(0.5, abs=0.1)
    assert usual.weight > 10
    rows = found(known(scores, base=-1), "default")
    drawn = [abs(row.shrunk_score - row.score) for row in rows]
    assert np.mean(drawn[20:]) > 3 * np.mean(drawn[:20])


def test_scores_are_hardly_drawn_when_adapters_differ_much():
    scores = np.repeat(np.linspace(0, 1, 11), 20).reshape(11, 20)
    assert usual_scores(known(scores, base=-1)).weight < 1


@pytest.mark.parametrize(
    "scores", [[[NAN, NAN]], [[0.5, NAN], [NAN, 0.5]], [[1.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]]
)
def test_usual_score_is_finite_when_little_is_known(scores):
    usual = usual_scores(known(scores, base=-1))
    assert 0 <= usual.score <= 1
    assert 0 < usual.weight < 100


def test_unmeasured_adapter_is_worth_nothing_when_others_were_measured():
    row = found(known([[1.0, 0.0], [NAN, NAN], [1.0, 1.0]]))[1]
    assert (row.score, row.count, row.standard_error) == (0.0, 0, 0.5)
    assert row.likelihood is None
    assert not row.eligible


def test_likelihood_is_finite_when_a_target_is_impossible():
    likelihoods = [[NAN, NAN], [-math.inf, -1.0]]
    assert found(known([[0.0, 0.0], [1.0, 1.0]], likelihoods))[1].likelihood == -25.5


def test_choosing_examples_choose_when_judging_ones_disagree():
    table = known([[0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 1]])
    assert winner(table, strategy("exhaustive").plan(table)) == 1


def test_likelier_adapter_is_chosen_when_scores_are_equal():
    table = known([[0, 0], [1, 1], [1, 1], [1, 1]], [[-9, -9], [-0.5, -0.5], [-0.1, -0.1], [NAN, NAN]])
    plan = strategy("default").plan(table)
    assert winner(table, plan) == 2
    assert winner(table, plan, by_likelihood=False) == 1


def test_likelier_adapter_is_chosen_when_scores_differ_by_less_than_their_error():
    close = [[0] * 8, [1] * 8, [1] * 7 + [0], [1] * 4 + [0] * 4]
    table = known(close, [[-9.0] * 8, [-0.5] * 8, [-0.1] * 8, [-0.01] * 8], choosing=8)
    plan = strategy("exhaustive").plan(table)
    assert places(table, plan).tolist() == [0, 2, 1, 3]
    assert places(table, plan, by_likelihood=False).tolist() == [0, 1, 2, 3]
    unsure = known(close, [[-9.0] * 8, [-0.5] * 8, [-0.1] * 8, [NAN] * 8], choosing=8)
    assert winner(unsure, plan) == 1


def test_place_is_none_when_an_adapter_fell():
    random = np.random.default_rng(0)
    table = known(random.random((40, 64)).round().tolist())
    plan = strategy("default").plan(table)
    assert [row.place > 0 for row in evidence(table, plan)] == [
        row != table.base and fell == 0 for row, fell in enumerate(plan.fell)
    ]


def test_base_is_chosen_when_there_is_no_adapter():
    table = known([[0, 1]])
    assert winner(table, strategy("default").plan(table)) == 0


def test_more_examples_give_no_advantage_when_the_winner_is_chosen():
    scores = np.array([[0.0] * 4, [1, 1, NAN, NAN], [1, 0, 1, 1]])
    table = known(scores, choosing=4)
    plan = strategy("exhaustive").plan(table)
    assert winner(table, plan) == 1
