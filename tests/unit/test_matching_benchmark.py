"""The matching benchmark measures what it says: same scores as the trainer's, honest replays, a hard pool."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.meter import Meter
from benchmarks.regrets import NEAR_BASE, Result, figures, hardened, joining, paired, shuffled
from benchmarks.runs import regret, run_strategy
from benchmarks.table import EXAMPLES, TASK_IDS, MeasuredPool, benchmark_examples
from lorauter.matching import Table, strategy
from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.noisy.recipe import NoisyRecipe
from lorauter_suite.demo.noisy.weights import Workshop
from lorauter_suite.demo.score import adapters_right, base_right
from lorauter_suite.demo.stack import LoraStack, Site
from lorauter_suite.demo.verify import POOL

ARMS = 1600


@pytest.fixture(scope="module")
def measured():
    """One task: 40 good adapters among many that are as bad as the base."""
    rng = np.random.default_rng(0)
    chances = np.full(ARMS + 1, 0.02)
    chances[:40] = np.linspace(0.9, 0.4, 40)
    scores = (rng.random((1, ARMS + 1, EXAMPLES)) < chances[None, :, None]).astype(float)
    likelihoods = np.log(chances)[None, :, None] + 0.01 * rng.standard_normal(scores.shape)
    return MeasuredPool(("t",), (*(f"a{i}" for i in range(ARMS)), "base"), scores, likelihoods)


def test_scores_are_the_trainers_when_an_adapter_is_measured():
    torch.set_num_threads(1)
    pool = load_pool(POOL)
    places = [1, 4, 26]
    sites = {name: Site(site.down[places], site.up[places]) for name, site in pool.stack.sites.items()}
    few = LoraStack([pool.stack.specs[place] for place in places], sites)
    examples = [one for task in TASK_IDS[:2] for one in benchmark_examples(task, 0)[:12]]
    workshop = Workshop(NoisyRecipe(count=36, trainings=0), pool.stack, {})
    meter = Meter(pool.model, pool.codec, examples)
    found = [meter.measure(workshop.make(workshop.adapters[place]))[0] for place in places]
    expected = adapters_right(pool.model, few, pool.codec, examples)
    assert 0 < expected.float().mean() < 1
    np.testing.assert_array_equal(np.stack(found), expected.numpy())
    scores, likelihoods = meter.measure(None)
    np.testing.assert_array_equal(scores, base_right(pool.model, pool.codec, examples).numpy())
    assert (likelihoods < 0).all()


def test_examples_of_a_task_are_distinct_and_the_same_for_the_same_seed():
    for task in TASK_IDS:
        examples = benchmark_examples(task, 0)
        assert len({example.input for example in examples}) == EXAMPLES
        assert examples == benchmark_examples(task, 0) != benchmark_examples(task, 1)


def test_run_counts_every_cell_when_all_is_measured(measured):
    truth = shuffled(measured, 0, np.random.default_rng(1))
    run = run_strategy(strategy("exhaustive"), truth)
    assert run.choosing + run.judging == truth.scores.size
    assert run.choosing == truth.choosing * len(truth.scores)
    assert not np.isnan(run.table.scores).any()


def test_run_measures_nothing_again_when_all_is_known(measured):
    truth = shuffled(measured, 0, np.random.default_rng(1))
    first = run_strategy(strategy("default"), truth)
    again = run_strategy(strategy("default"), truth, first.table)
    assert (again.choosing, again.judging) == (0, 0)
    assert again.chosen == first.chosen


def test_regret_is_zero_for_the_best_arm_alone():
    scores = np.array([[0.0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    truth = Table(scores, np.zeros_like(scores), choosing=2, base=2)
    assert [regret(truth, row) for row in range(3)] == [0.5, 0.0, 1.0]


def test_shuffling_moves_adapters_with_their_cells_and_leaves_the_base_last(measured):
    truth = shuffled(measured, 0, np.random.default_rng(2))
    assert truth.base == ARMS
    assert sorted(truth.scores.sum(axis=1)) == sorted(measured.scores[0].sum(axis=1))
    assert truth.scores[-1].sum() == measured.scores[0, -1].sum()
    assert not np.array_equal(truth.scores, measured.scores[0])


def test_hard_pool_has_one_good_adapter_and_it_is_the_best(measured):
    rng = np.random.default_rng(3)
    easy = shuffled(measured, 0, rng)
    hard = hardened(easy, rng)
    means = hard.scores.mean(axis=1)
    assert len(means) == ARMS + 1
    assert (means > means[hard.base] + NEAR_BASE).sum() == 1
    assert means.max() == easy.scores.mean(axis=1).max()
    assert np.array_equal(hard.scores[hard.base], easy.scores[easy.base])


def test_joining_costs_little_of_a_full_match(measured):
    rng = np.random.default_rng(4)
    shares = joining(shuffled(measured, 0, rng), strategy("default"), rng)
    assert all(0 < share < 0.05 for share in shares)


def test_figures_take_the_worst_task_by_its_mean_over_orders():
    rows = [("a", 0, 0.0), ("a", 0, 0.4), ("a", 1, 0.1), ("a", 1, 0.1), ("b", 0, 1.0)]
    results = [Result("easy", name, task, 0, 10, 5, lost) for name, task, lost in rows]
    results.append(Result("hard", "a", 0, 0, 99, 99, 0.9))
    found = figures(results, "easy")
    assert found.keys() == {"a", "b"}
    assert found["a"]["mean_regret"] == pytest.approx(0.15)
    assert found["a"]["worst_regret"] == pytest.approx(0.2)
    assert found["a"]["worst_run_regret"] == pytest.approx(0.4)
    assert found["a"]["evaluations"] == 10


def test_paired_differences_are_taken_within_each_order():
    lost = {("a", 0): (0.3, 0.5), ("b", 0): (0.1, 0.5), ("a", 1): (0.1, 0.1), ("b", 1): (0.1, 0.1)}
    results = [
        Result("easy", name, task, order, 1, 1, regrets[order])
        for (name, task), regrets in lost.items()
        for order in range(2)
    ]
    assert paired(results, "easy", "a", "b") == {
        "difference": 0.05,
        "standard_error": 0.05,
        "worst_difference": 0.1,
        "worst_standard_error": 0.1,
    }
