"""The noisy pool: the same from the same seed, of known truth, and broken in known ways."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from lorauter.errors import UnprocessableRequest
from lorauter.lora.check import check_adapter, read_modules
from lorauter.lora.weights import read_weights
from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.data import TASKS
from lorauter_suite.demo.noisy.broken import BROKEN
from lorauter_suite.demo.noisy.pool import MANIFEST, write_pool
from lorauter_suite.demo.noisy.recipe import DERIVED, Kind, NoisyRecipe, all_sources, noisy_adapters
from lorauter_suite.demo.noisy.weights import Workshop, blended, merged_weights, noised
from lorauter_suite.demo.stack import linear_names
from lorauter_suite.demo.verify import POOL

SMALL = NoisyRecipe(count=36 + len(DERIVED), trainings=0)
"""All shipped adapters, and every kind that is derived from them."""


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return load_pool(POOL)


@pytest.fixture(scope="module")
def workshop(loaded):
    return Workshop(SMALL, loaded.stack, {})


def by_kind(workshop, kind):
    return next(adapter for adapter in workshop.adapters if adapter.kind is kind)


def test_recipe_lists_the_same_adapters_when_the_seed_is_the_same():
    assert noisy_adapters(NoisyRecipe()) == noisy_adapters(NoisyRecipe())
    assert noisy_adapters(NoisyRecipe()) != noisy_adapters(NoisyRecipe(seed=1))
    assert NoisyRecipe().digest() == NoisyRecipe().digest() != NoisyRecipe(seed=1).digest()


def test_adapters_of_a_smaller_pool_are_those_of_a_larger_one():
    assert noisy_adapters(NoisyRecipe(count=400)) == noisy_adapters(NoisyRecipe(count=600))[:400]


def test_pool_of_full_size_holds_every_kind_with_its_truth():
    recipe = NoisyRecipe()
    adapters, sources = noisy_adapters(recipe), {source.id: source for source in all_sources(recipe)}
    assert len({adapter.id for adapter in adapters}) == recipe.count >= 1500
    assert Counter(adapter.kind for adapter in adapters).keys() == set(Kind)
    for adapter in adapters:
        assert adapter.parents
        assert adapter.task in ({""} if adapter.kind is Kind.RANDOM else {sources[adapter.parents[0]].task})
    assert {source.task for source in sources.values()} == {task.id for task in TASKS}


def test_sources_trained_for_the_wrong_answers_are_told_apart():
    clusters = {task.id: task.cluster for task in TASKS}
    for source in all_sources(NoisyRecipe()):
        assert (source.answered != clusters[source.task]) == (source.kind is Kind.WRONG)


@pytest.mark.parametrize("kind", sorted(set(DERIVED)))
def test_weights_are_the_same_when_an_adapter_is_made_twice(loaded, workshop, kind):
    adapter = by_kind(workshop, kind)
    first, again = workshop.make(adapter), Workshop(SMALL, loaded.stack, {}).make(adapter)
    parent = workshop.make(workshop.adapters[0])
    assert first.modules.keys() == again.modules.keys()
    for name, (down, up) in first.modules.items():
        assert torch.equal(down, again.modules[name][0])
        assert torch.equal(up, again.modules[name][1])
        assert torch.isfinite(down).all()
        assert torch.isfinite(up).all()
    assert any(
        not torch.equal(up, parent.modules[n][1])
        for n, (_, up) in first.modules.items()
        if n in parent.modules
    )


def test_blended_adds_what_its_parents_add_by_their_shares(loaded, workshop):
    first, second = (dict(workshop.make(adapter).modules) for adapter in workshop.adapters[:2])
    together = blended(first, second, 0.7)
    for name in together:
        inputs = torch.randn(3, together[name][0].shape[1])
        wanted = sum(
            share * inputs @ part[name][0].T @ part[name][1].T
            for share, part in ((0.7, first), (0.3, second))
            if name in part
        )
        torch.testing.assert_close(inputs @ together[name][0].T @ together[name][1].T, wanted)


def test_noised_is_the_parent_when_sigma_is_zero(workshop):
    parent = dict(workshop.make(workshop.adapters[0]).modules)
    same = noised(parent, 0.0, torch.Generator().manual_seed(0))
    assert all(torch.equal(same[name][1], up) for name, (_, up) in parent.items())


def test_merged_weights_are_the_base_plus_the_adapter(loaded, workshop):
    lora = workshop.make(by_kind(workshop, Kind.MIXED))
    merged = merged_weights(loaded.model, lora)
    assert {name.removesuffix(".weight") for name in merged} <= set(linear_names(loaded.model))
    for name, (down, up) in lora.modules.items():
        base = loaded.model.get_submodule(name).weight
        torch.testing.assert_close(merged[f"{name}.weight"] - base, up @ down, atol=1e-5, rtol=1e-4)


def test_written_pool_is_what_the_manifest_says(workshop, tmp_path):
    steps = []
    write_pool(tmp_path, workshop, lambda: steps.append(1))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    ids = [entry["id"] for entry in manifest["adapters"] + manifest["broken"]]
    assert sorted(ids) == sorted(folder.name for folder in (tmp_path / "adapters").iterdir())
    assert len(steps) == len(ids) == SMALL.count + len(BROKEN)
    assert manifest["digest"] == SMALL.digest()
    modules = read_modules(POOL / "base")
    for adapter in workshop.adapters:
        folder = tmp_path / "adapters" / adapter.id
        check_adapter(folder, modules)
        read = read_weights(folder)
        for name, (down, up) in workshop.make(adapter).modules.items():
            np.testing.assert_array_equal(read[name].a, down.numpy())
            np.testing.assert_array_equal(read[name].b, up.numpy())
            assert read[name].scale == 1.0


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_broken_adapter_is_refused_for_its_reason_when_its_files_show_it(workshop, tmp_path, broken):
    broken.write(workshop.make(workshop.adapters[0]), tmp_path / "adapter")
    modules = read_modules(POOL / "base")
    if broken.stage == "matching" or broken.reason == "ADAPTER_BASE_MISMATCH":
        assert check_adapter(tmp_path / "adapter", modules).ranks_by_module
    else:
        with pytest.raises(UnprocessableRequest) as refusal:
            check_adapter(tmp_path / "adapter", modules)
        assert refusal.value.reason == broken.reason
