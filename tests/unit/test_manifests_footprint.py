"""How TGI would hold what is registered, what its launcher is told, and whose traffic counts."""

from __future__ import annotations

import numpy as np
import pytest

from lorauter.errors import FailedPrecondition, InvalidArgument
from lorauter.lora.check import read_modules
from lorauter.lora.config import AdapterConfig
from lorauter.lora.layout import layout_of, read_layout
from lorauter.lora.servers import tgi
from lorauter.lora.write import write_adapter
from lorauter.manifests import Footprints, Member, traffic_shares
from lorauter.manifests.render import arguments, environment, lora_adapters, values

LAYERS = {"q_proj": (8, 8), "v_proj": (8, 4)}
MODULES = {f"model.layers.{n}.self_attn.{name}": shape for n in range(3) for name, shape in LAYERS.items()}
MODULES["lm_head"] = (8, 32)


def ranks(rank: int, *layers: str, without: str = "") -> dict[str, int]:
    return {
        name: rank
        for name in MODULES
        if name.rpartition(".")[2] in layers and not (without and without in name)
    }


def held(*parts: tuple[dict[str, int], float], shards: int = 1, max_rank: int = 0, is_uniform: bool = True):
    members = [
        (Member(f"a{place}", 1, f"sha256:{place:064x}", weight), layout_of(of, is_uniform))
        for place, (of, weight) in enumerate(parts)
    ]
    return Footprints(MODULES, tgi(shards), max_rank).candidate(members)


@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128])
def test_an_adapter_of_a_rank_that_tgi_has_is_loaded_as_it_is(rank: int) -> None:
    found = held((ranks(rank, "q_proj"), 1.0))
    assert (found.rank, found.as_is, found.refusal) == (rank, True, "")
    assert found.size_bytes == rank * 3 * (8 + 8) * 2


@pytest.mark.parametrize(("rank", "padded"), [(1, 8), (2, 8), (9, 16), (24, 32), (48, 64), (96, 128)])
def test_a_rank_that_tgi_would_pad_is_written_anew(rank: int, padded: int) -> None:
    """TGI scales all but the first kind of layer of such an adapter wrongly."""
    found = held((ranks(rank, "q_proj", "v_proj"), 1.0))
    assert (found.rank, found.as_is) == (padded, False)
    assert found.size_bytes == padded * 3 * (8 + 8 + 8 + 4) * 2


def test_ranks_below_eight_for_each_shard_are_written_anew() -> None:
    assert held((ranks(8, "q_proj"), 1.0), shards=2).rank == 16
    assert not held((ranks(8, "q_proj"), 1.0), shards=2).as_is
    assert held((ranks(32, "q_proj"), 1.0), shards=4).as_is


def test_gaps_and_patterns_are_written_anew() -> None:
    gap = held((ranks(8, "q_proj", without=".1."), 1.0))
    assert (gap.rank, gap.as_is, gap.size_bytes) == (8, False, 8 * 3 * 16 * 2)
    mixed = held((ranks(8, "q_proj") | ranks(16, "v_proj"), 1.0))
    assert (mixed.rank, mixed.as_is) == (16, False)
    assert not held((ranks(8, "q_proj"), 1.0), is_uniform=False).as_is
    assert not held((ranks(8, "q_proj"), 0.5)).as_is, "another weight is another content"


def test_what_tgi_never_applies_is_refused_with_the_reason() -> None:
    assert held((ranks(8, "q_proj", "lm_head"), 1.0)).refusal == "tgi does not apply lm_head"
    assert held((ranks(8, "q_proj"), 0.5), (ranks(8, "lm_head"), 0.5)).refusal
    assert held((ranks(129, "q_proj"), 1.0)).refusal == "its rank is 129; tgi takes 128"
    assert held(({"model.layers.0.self_attn.k_proj": 8}, 1.0)).refusal == "the base model has no layer k_proj"
    assert held((ranks(48, "q_proj"), 1.0), max_rank=32).refusal == "its rank is 48; tgi takes 32"
    assert held((ranks(32, "q_proj"), 1.0), max_rank=32).as_is


def test_a_weighted_set_has_the_ranks_of_its_members_side_by_side() -> None:
    found = held((ranks(16, "q_proj"), 0.25), (ranks(8, "q_proj", "v_proj"), 0.75))
    assert [member.weight for member in found.members] == [0.75, 0.25]
    assert (found.rank, found.as_is, found.size_bytes) == (32, False, 32 * 3 * (16 + 12) * 2)
    apart = held((ranks(16, "q_proj"), 0.5), (ranks(16, "v_proj"), 0.5))
    assert apart.rank == 16, "they share no module"
    assert held(*[(ranks(64, "q_proj"), 0.3)] * 3).refusal == "its rank is 192; tgi takes 128"


def test_footprints_need_the_base_models_layers() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        Footprints({}, tgi())
    assert caught.value.reason == "POOL_MODULES_UNKNOWN"


def test_a_layout_is_read_from_headers(demo_pool, tmp_path) -> None:
    modules = read_modules(demo_pool / "base")
    layout = read_layout(demo_pool / "adapters" / "sort-word-a")
    assert layout.is_uniform
    assert {name for name, _ in layout.ranks} <= modules.keys()
    chosen = sorted(name for name in modules if name.endswith("q_proj"))[:2]
    for number, (alpha, pattern, alphas) in enumerate(
        [(8.0, {}, {}), (8.5, {}, {}), (8.0, {chosen[0]: 4}, {}), (8.0, {}, {chosen[0]: 4.0})]
    ):
        config = AdapterConfig("b", 8, alpha, False, ("q_proj",), pattern, alphas)
        matrices = {
            name: (
                np.zeros((pattern.get(name, 8), modules[name][0]), np.float32),
                np.zeros((modules[name][1], pattern.get(name, 8)), np.float32),
            )
            for name in chosen
        }
        write_adapter(tmp_path / str(number), config, matrices)
        found = read_layout(tmp_path / str(number))
        assert found.is_uniform == (number == 0)
        assert dict(found.ranks) == {name: pattern.get(name, 8) for name in chosen}


def test_the_launcher_is_told_names_paths_and_no_graphs() -> None:
    assert lora_adapters(["ab", "mix-1"], "/store/") == "ab=/store/ab,mix-1=/store/mix-1"
    assert environment(["ab"]) == {"LORA_ADAPTERS": "ab=/adapters/ab", "CUDA_GRAPHS": "0"}
    assert arguments(["ab"]) == ["--lora-adapters", "ab=/adapters/ab", "--cuda-graphs", "0"]
    assert arguments([]) == ["--cuda-graphs", "0"]
    found = values("p", "sha256:1", ["ab"], "/s")
    assert found["environment"]["LORA_ADAPTERS"] == "ab=/s/ab"
    assert found["arguments"] == ["--cuda-graphs", "0"]


@pytest.mark.parametrize("path", ["adapters", "", "/a,b", "/a=b", "/a@b", "/a\n"])
def test_a_path_that_tgi_would_misread_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        lora_adapters(["ab"], path)
    assert caught.value.reason == "INVALID_ADAPTERS_PATH"


def test_traffic_is_uniform_until_there_are_enough_decisions() -> None:
    tasks = ["a", "b", "c", "d"]
    assert traffic_shares({}, tasks).tolist() == [0.25] * 4
    few = traffic_shares({"a": 3.0}, tasks)
    assert 0.25 < few[0] < 0.28
    many = traffic_shares({"a": 9_000.0, "b": 1_000.0, "gone": 1e9}, tasks)
    assert many.sum() == pytest.approx(1.0)
    assert many[0] == pytest.approx(0.9, abs=0.01)
    assert (many > 0).all()
    assert traffic_shares({"a": 1.0}, []).size == 0
