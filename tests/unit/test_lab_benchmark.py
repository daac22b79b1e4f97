"""The lab measures what it says: pools that lack what a regime takes, exact sets, PEFT's own merge."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from benchmarks.lab_composing import Composer, MergedStack
from benchmarks.lab_figures import by_seed, mean_and_error, paired, percent_of, regimes
from benchmarks.lab_measured import Measured, lab_examples, lora
from benchmarks.lab_methods import METHODS, STRATEGIES, alone, answers, described, evened
from benchmarks.lab_pools import REGIMES, LabPools, Routes
from benchmarks.lab_recipe import LabRecipe, task_ids
from benchmarks.lab_training import trained_stack
from benchmarks.meter import Meter
from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.data import TASKS
from lorauter_suite.demo.noisy.weights import Lora
from lorauter_suite.demo.stack import LoraStack, Site
from lorauter_suite.demo.verify import POOL

RECIPE = LabRecipe()
SMALL = LabRecipe(validation=8, queries=3)
NAMES = [spec.id for spec in RECIPE.adapters.specs]


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return load_pool(POOL)


@pytest.fixture(scope="module")
def examples():
    return [lab_examples(SMALL, 1, split) for split in ("validation", "test")]


@pytest.fixture(scope="module")
def measured(examples):
    """Vectors point to their task, an adapter is right at its own task, now and then at those beside it."""
    rng = np.random.default_rng(0)
    tasks, arms = len(TASKS), len(NAMES) + 1
    near = np.exp(-np.abs(np.arange(tasks)[:, None] - np.append(RECIPE.homes, 99)[None]))

    def drawn(count):
        return (rng.random((tasks, arms, count)) < near[..., None]).astype(float)

    def vectors(count):
        found = np.eye(tasks, 32)[:, None] + 0.1 * rng.standard_normal((tasks, count, 32))
        return (found / np.linalg.norm(found, axis=2, keepdims=True)).astype(np.float32)

    scores = drawn(SMALL.validation)
    return Measured(
        scores, scores - 1.5, drawn(SMALL.queries), vectors(SMALL.validation), vectors(SMALL.queries)
    )


def pools_of(measured, examples):
    return LabPools(measured, RECIPE.homes, NAMES, *examples)


def few(stack, places):
    sites = {name: Site(site.down[places], site.up[places]) for name, site in stack.sites.items()}
    return LoraStack([stack.specs[place] for place in places], sites)


def test_recipe_is_the_frozen_one():
    assert RECIPE.seeds == (11, 12, 13, 14)
    assert RECIPE.training_digest(11) == "d94063af994b098d2011e00d4fe58660"
    assert RECIPE.measured_digest(11) != RECIPE.measured_digest(12)
    assert [RECIPE.homes[place] for place in RECIPE.own] == list(range(len(TASKS)))


def test_queries_are_new_when_the_seed_is():
    validation, queries = (
        {seed: lab_examples(SMALL, seed, split) for seed in (1, 2)} for split in ("validation", "test")
    )
    known = {example.input for rows in validation[1] for example in rows}
    asked = {seed: {example.input for rows in queries[seed] for example in rows} for seed in (1, 2)}
    assert not known & asked[1]
    assert len(asked[1] & asked[2]) < 0.1 * len(asked[1])


def test_training_comes_from_the_cache_when_it_was_done_before(loaded, tmp_path):
    specs = tuple(replace(spec, steps=1) for spec in RECIPE.adapters.specs[:2])
    recipe = LabRecipe(adapters=replace(RECIPE.adapters, specs=specs, batch=1))
    steps = []
    first = trained_stack(recipe, 7, loaded, tmp_path, lambda: steps.append(1))
    again = trained_stack(recipe, 7, loaded, tmp_path, lambda: steps.append(1))
    other = trained_stack(recipe, 8, loaded, tmp_path, lambda: steps.append(1))
    assert len(steps) == 2
    for name, site in first.sites.items():
        assert torch.equal(site.down, again.sites[name].down)
        assert not torch.equal(site.down, other.sites[name].down)


@pytest.mark.parametrize("regime", REGIMES)
def test_nothing_that_is_away_serves_when_a_regime_takes_it(regime, measured, examples):
    routes = pools_of(measured, examples).routes(regime, "default")
    own = np.arange(len(TASKS))[:, None]
    homes = np.append(RECIPE.homes, -1)
    served = (homes[routes.chosen] == own[..., None]) & (routes.weights > 0)
    assert served.any() == (regime == "non_ood") == (homes[routes.single] == own).any()
    assert (routes.nearest == own).any() == (regime != "ood")
    np.testing.assert_allclose(routes.weights.sum(axis=2), 1.0)


def test_what_is_away_leaves_no_trace_when_a_pool_is_matched_and_fitted(measured, examples):
    row = 4
    mine = np.array(RECIPE.homes) == row
    changed = replace(
        measured,
        scores=measured.scores.copy(),
        validation=measured.validation.copy(),
    )
    changed.scores[:, np.append(mine, False)] = 1.0
    changed.validation[row] = measured.validation[row][:, ::-1]
    before, after = (pools_of(each, examples).pool(row, "ood") for each in (measured, changed))
    assert before.profile == after.profile
    np.testing.assert_array_equal(before.profile.scatter, after.profile.scatter)
    assert task_ids()[row] not in before.task_rows
    for ours, theirs in zip(before.tasks, after.tasks, strict=True):
        assert ours.affinities == theirs.affinities
        np.testing.assert_array_equal(ours.centroid, theirs.centroid)
    traced = [pools_of(each, examples).pool(row, "non_ood") for each in (measured, changed)]
    assert traced[0].profile != traced[1].profile


def test_sets_are_composed_exactly_when_they_answer(loaded, measured, examples):
    stack = few(loaded.stack, [0, 2, 25, 26])
    alone_right = Meter(loaded.model, loaded.codec, [one for rows in examples[1] for one in rows])
    arms = [*(lora(stack, place) for place in range(4)), None]
    right = np.stack([alone_right.measure(arm)[0] for arm in arms]).reshape(5, len(TASKS), -1).swapaxes(0, 1)
    known = replace(measured, scores=right, right=right)
    composer = Composer(loaded, stack, known, examples[1])
    weights = np.array([0.5, 0.3, 0.2])
    for chosen in ([0, 1, 3], [2, 0, 4]):
        parts = [
            {name: (down, up * weight) for name, (down, up) in arms[arm].modules.items()}
            for arm, weight in zip(chosen, weights, strict=True)
            if arms[arm]
        ]
        names = {name for part in parts for name in part}
        summed = Lora(
            {
                name: (
                    torch.cat([part[name][0] for part in parts if name in part]),
                    torch.cat([part[name][1] for part in parts if name in part], dim=1),
                )
                for name in names
            }
        )
        expected = alone_right.measure(summed)[0].reshape(len(TASKS), -1)
        shape = (*expected.shape, 3)
        found = composer.right(np.broadcast_to(chosen, shape), np.broadcast_to(weights, shape))
        np.testing.assert_array_equal(found, expected)
        assert 0 < expected.mean() < 1
    single = composer.right(
        np.full((*expected.shape, 3), [1, 4, 4]), np.full((*expected.shape, 3), [1.0, 0, 0])
    )
    np.testing.assert_array_equal(single, alone(known, np.ones(expected.shape, np.intp)))


def test_merging_is_that_of_peft_when_ranks_and_targets_differ(loaded, tmp_path):
    places = [1, 2, 25]
    stack = few(loaded.stack, places)
    assert len({(spec.rank, spec.targets, spec.rslora) for spec in stack.specs}) == 3
    model = None
    for place, spec in enumerate(stack.specs):
        folder = tmp_path / spec.id
        padded_files(stack, place, folder)
        if model is None:
            fresh = load_pool(POOL).model
            model = PeftModel.from_pretrained(fresh, folder, adapter_name=spec.id)
        else:
            model.load_adapter(folder, adapter_name=spec.id)
    weights = [0.5, 0.3, 0.2]
    model.add_weighted_adapter([s.id for s in stack.specs], weights, "merged", combination_type="linear")
    model.set_adapter("merged")
    ids = torch.tensor([loaded.codec.prompt("Write the word backwards: planet")])
    sets = (torch.tensor([[0, 1, 2]]), torch.tensor([weights]))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        with MergedStack(stack.specs, stack.sites).mixed(loaded.model, *sets):
            merged = loaded.model(input_ids=ids).logits
        with stack.mixed(loaded.model, *sets):
            exact = loaded.model(input_ids=ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert (exact - expected).abs().max() > 0.1


def padded_files(stack, place, folder):
    """Writes an adapter with all its ranks at the stack's largest, since PEFT merges equal ranks only."""
    spec = stack.specs[place]
    rank = next(iter(stack.sites.values())).down.shape[1]
    tensors = {}
    for name, site in stack.sites.items():
        if name.rpartition(".")[2] in spec.targets:
            tensors[f"base_model.model.{name}.lora_A.weight"] = site.down[place].contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = site.up[place].contiguous()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": spec.scale * rank}
    config |= {"target_modules": list(spec.targets), "bias": "none", "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_every_method_has_answers_when_a_seed_is_done(measured, examples, loaded):
    pools = pools_of(measured, examples)
    composer = Composer(loaded, loaded.stack, measured, examples[1])
    done = []
    found, told = answers(measured, RECIPE.own, pools, composer, lambda: done.append(1))
    assert len(done) == len(REGIMES) * len(STRATEGIES)
    for regime in REGIMES:
        assert tuple(found[regime]) == METHODS
        best = found[regime]["best_single"].mean(axis=1)
        for name in ("base", "constant", "default_single", "paper_single"):
            if name != "constant" or regime == "non_ood":
                assert (found[regime][name].mean(axis=1) <= best + 1e-12).all()
        assert told[regime]["default"]["arms"] >= 1
    np.testing.assert_array_equal(found["ood"]["own_adapter"], found["non_ood"]["own_adapter"])
    assert found["ood"]["best_single"].mean() < found["non_ood"]["best_single"].mean()


def test_percentages_weigh_clusters_alike_when_they_differ():
    right = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1]], float)
    reference = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], float)
    assert percent_of(right, reference, ["a", "a", "b"]) == pytest.approx(100 * (3 / 6 + 3 / 4) / 2)
    assert percent_of(reference, reference, ["a", "a", "b"]) == 100


def test_errors_are_over_seeds_and_paired_when_methods_are_compared():
    clusters = ["a", "b"]
    full = np.ones((2, 10))

    def seed(ours, theirs):
        rows = dict.fromkeys(METHODS, full)
        return {regime: rows | {"default": full * ours, "paper": full * theirs} for regime in REGIMES}

    seeds = [seed(0.9, 0.5), seed(0.8, 0.4), seed(1.0, 0.6)]
    summary = regimes(seeds, clusters)["ood"]["default"]
    assert summary["percent_of_best_single"] == summary["percent_of_own"] == pytest.approx(90)
    assert summary["standard_error"] == pytest.approx(10 / 3**0.5, abs=0.01)
    assert paired(seeds, clusters, "default")["ood"]["paper"] == {"difference": 40.0, "standard_error": 0.0}
    assert by_seed(seeds, clusters)["ood"]["default"] == [90.0, 80.0, 100.0]
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)


def test_weights_are_even_over_those_that_have_one():
    weights = np.array([[[0.6, 0.4, 0.0]], [[1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(evened(weights), np.array([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]]]))
    route = Routes(
        chosen=np.zeros((2, 1, 3), np.intp),
        weights=weights,
        single=np.zeros((2, 1), np.intp),
        nearest=np.array([[0], [0]]),  # reverse-word, asked by reverse-word and reverse-number
    )
    shared = {"right_task": 0.5, "same_cluster": 1.0, "same_domain": 0.5}
    assert described(route) == {"arms": 1.5, "largest_weight": 0.8} | shared
