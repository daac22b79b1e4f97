"""What a manifest takes: within its memory, as good as it can be told, the same every time."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lorauter.errors import FailedPrecondition
from lorauter.lora.recipe import Base, make_recipe
from lorauter.lora.servers import tgi
from lorauter.manifests import Candidate, Measured, Member, Proposal, Target, expected_share, propose
from lorauter.manifests.proposal import worth_of
from lorauter.manifests.render import most_entries
from lorauter.manifests.selection import Limit, greedy

BASE = Base("test/base", "sha256:base", {"model.layers.0.self_attn.q_proj": (8, 8)})
SEEDS = range(40)


def digest_of(number: int) -> str:
    return f"sha256:{number:064x}"


def adapter(number: int, size: int = 10, **fields) -> Candidate:
    member = Member(f"a{number}", 1, digest_of(number))
    return Candidate((member,), 8, size, **fields)


def target(memory: int, path: str = "/adapters") -> Target:
    return Target("p", BASE, tgi(), memory, path)


def measured(base: list[float], scores: dict[tuple[int, int], float], shares: list[float] | None = None):
    """Scores by (candidate, task)."""
    rows, columns = zip(*scores, strict=True) if scores else ((), ())
    return Measured(
        shares=np.array(shares or [1 / max(1, len(base))] * len(base)),
        base=np.array(base, dtype=np.float64),
        rows=np.array(rows, dtype=np.int64),
        columns=np.array(columns, dtype=np.int64),
        scores=np.array(list(scores.values()), dtype=np.float64),
    )


@dataclass(frozen=True)
class Instance:
    candidates: list[Candidate]
    measured: Measured

    def propose(self, memory: int) -> Proposal:
        return propose(target(memory), self.candidates, self.measured)

    def share(self, chosen: tuple[Candidate, ...] | list[Candidate]) -> float:
        return expected_share(self.candidates, self.measured, [each.members for each in chosen])

    def best_gain(self, memory: int) -> float:
        """What the best choice gains over the base, by trying all."""
        return max(
            self.share(chosen)
            for count in range(len(self.candidates) + 1)
            for chosen in itertools.combinations(self.candidates, count)
            if sum(each.size_bytes for each in chosen) <= memory
        ) - self.share([])


def random_instance(seed: int, sizes: tuple[int, ...] = (4, 8, 16, 32), count: int = 8) -> Instance:
    draw = np.random.default_rng(seed)
    tasks = int(draw.integers(1, 7))
    candidates = [adapter(number, int(draw.choice(sizes))) for number in range(count)]
    scores = {
        (row, column): float(draw.random() ** 2)
        for row in range(count)
        for column in range(tasks)
        if draw.random() < 0.6
    }
    shares = draw.dirichlet(np.ones(tasks)).tolist()
    return Instance(candidates, measured((draw.random(tasks) * 0.3).tolist(), scores, shares))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_manifest_keeps_within_its_memory_and_says_what_it_gains(seed: int) -> None:
    instance = random_instance(seed)
    for memory in (3, 4, 12, 40, 1_000):
        found = instance.propose(memory)
        assert found.size_bytes <= memory
        loaded = [entry.members for entry in found.entries]
        assert found.expected_share == expected_share(instance.candidates, instance.measured, loaded)
        for entry in found.entries:
            others = [members for members in loaded if members != entry.members]
            without = expected_share(instance.candidates, instance.measured, others)
            assert entry.gain == pytest.approx(found.expected_share - without, abs=1e-8)
            assert entry.gain > 0
        gains = [entry.gain for entry in found.entries]
        assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_manifest_is_the_same_whatever_the_order_of_candidates(seed: int) -> None:
    instance = random_instance(seed)
    order = np.random.default_rng(seed + 1_000).permutation(len(instance.candidates))
    places = np.argsort(order)
    shuffled = Instance(
        [instance.candidates[place] for place in order],
        replace(instance.measured, rows=places[instance.measured.rows]),
    )
    assert shuffled.propose(40) == instance.propose(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_more_memory_is_never_worse(seed: int) -> None:
    instance = random_instance(seed)
    shares = [instance.propose(memory).expected_share for memory in range(2, 160, 6)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0), "with all loaded nothing is lost"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_manifest_is_at_least_its_best_single_entry_and_its_greedy_start(seed: int) -> None:
    instance = random_instance(seed)
    worth = worth_of(instance.measured, range(len(instance.candidates)))
    sizes = np.array([each.size_bytes for each in instance.candidates])
    for memory in (4, 9, 20, 33, 60):
        share = instance.propose(memory).expected_share
        single = [[each] for each in instance.candidates if each.size_bytes <= memory]
        assert share >= max(instance.share(chosen) for chosen in [[], *single])
        begin = greedy(worth, Limit(sizes, [True] * len(sizes), memory, 99))
        assert share >= instance.share([instance.candidates[place] for place in begin]) - 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_a_manifest_gains_what_is_proven_of_the_best_choice(seed: int) -> None:
    some, even = random_instance(seed), random_instance(seed, sizes=(10,))
    for memory in (10, 25, 45):
        found = some.propose(memory)
        assert found.expected_share - found.base_share >= some.best_gain(memory) * (1 - 1 / math.e) / 2 - 1e-9
        found = even.propose(memory)
        assert found.expected_share - found.base_share >= even.best_gain(memory) * (1 - 1 / math.e) - 1e-9


def test_manifests_are_close_to_the_best_choice_on_the_whole() -> None:
    parts = []
    for seed in SEEDS:
        instance = random_instance(seed)
        found = instance.propose(40)
        parts.append((found.expected_share - found.base_share) / instance.best_gain(40))
    print(f"of the best choice's gain: {np.mean(parts):.4f} on average, {min(parts):.3f} at least")
    assert np.mean(parts) > 0.97


def test_the_best_single_entry_is_taken_where_greed_would_miss_it() -> None:
    """The small one adds most for each byte, and leaves no room for the one that matters."""
    candidates = [adapter(1, 1), adapter(2, 100)]
    scores = measured([0.0, 0.0], {(0, 0): 0.02, (1, 1): 1.0}, [0.02, 0.98])
    found = propose(target(100), candidates, scores)
    assert [entry.members[0].adapter_id for entry in found.entries] == ["a2"]


def test_what_others_make_useless_is_taken_out_and_the_room_is_used() -> None:
    """The all-rounder comes first, but both specialists together leave it nothing to do."""
    all_round, one, two, other = adapter(1), adapter(2), adapter(3), adapter(4)
    scores = {(0, 0): 0.8, (0, 1): 0.8, (1, 0): 1.0, (2, 1): 1.0, (3, 2): 0.1}
    found = propose(
        target(30), [all_round, one, two, other], measured([0.0, 0.0, 0.09], scores, [0.45, 0.45, 0.1])
    )
    assert sorted(entry.members[0].adapter_id for entry in found.entries) == ["a2", "a3", "a4"]
    assert found.expected_share == 1.0
    assert found.left_out == ()


def test_what_is_left_out_is_said_with_its_reason() -> None:
    candidates = [adapter(1), adapter(2), adapter(3, 1_000), adapter(4, 0, refusal="no kernel has its rank")]
    scores = measured([0.1] * 4, {(0, 0): 1.0, (1, 1): 0.9, (2, 2): 0.8, (3, 3): 0.7}, [0.4, 0.25, 0.2, 0.15])
    found = propose(target(15), candidates, scores)
    assert [entry.members[0].adapter_id for entry in found.entries] == ["a1"]
    said = {each.members[0].adapter_id: each.reason for each in found.left_out}
    assert list(said) == ["a2", "a3", "a4"], "most gain first"
    assert said["a2"] == "it takes 10 bytes, and 5 are left; what is loaded adds more for each"
    assert said["a3"] == "it takes 1000 bytes, more than the 15 there are"
    assert said["a4"] == "no kernel has its rank"
    assert found.left_out[0].gain == pytest.approx(0.25 * (1 - 0.1 / 0.9))


def test_an_adapter_no_better_than_the_base_is_never_loaded() -> None:
    found = propose(target(100), [adapter(1)], measured([0.5], {(0, 0): 0.5}))
    assert (found.entries, found.left_out, found.expected_share) == ((), (), 1.0)


def test_a_task_on_which_nothing_scores_loses_nothing() -> None:
    found = propose(target(100), [adapter(1)], measured([0.0, 0.2], {(0, 0): 0.0, (0, 1): 0.4}))
    assert (found.base_share, found.expected_share) == (0.75, 1.0)


def test_the_list_stays_short_enough_for_an_environment() -> None:
    path = "/" + "x" * 1_000
    count = most_entries(path)
    assert 100 < count < 150
    assert most_entries("/adapters") > 900
    candidates = [adapter(number, 1) for number in range(count + 10)]
    scores = measured([0.0] * (count + 10), {(place, place): 1.0 for place in range(count + 10)})
    found = propose(target(10_000, path), candidates, scores)
    assert len(found.entries) == count
    assert found.left_out[0].reason == f"{count} entries are as many as the launcher's environment holds"


def test_a_manifest_needs_memory_and_measurements() -> None:
    for memory in (0, -1):
        with pytest.raises(FailedPrecondition) as caught:
            propose(target(memory), [adapter(1)], measured([0.0], {(0, 0): 1.0}))
        assert caught.value.reason == "MANIFEST_MEMORY_REQUIRED"
    with pytest.raises(FailedPrecondition) as caught:
        propose(target(1), [], measured([], {}))
    assert caught.value.reason == "NOTHING_MEASURED"


def test_entries_are_named_by_their_content() -> None:
    plain, anew = adapter(1), adapter(2, as_is=False)
    members = (Member("a3", 1, digest_of(3), 0.75), Member("a4", 2, digest_of(4), 0.25))
    mixed = Candidate(members, 16, 10, as_is=False)
    scores = measured([0.0] * 3, {(0, 0): 1.0, (1, 1): 1.0, (2, 2): 1.0})
    found = propose(target(100), [plain, anew, mixed], scores)
    named = {entry.members[0].adapter_id: entry.name for entry in found.entries}
    assert named["a1"] == digest_of(1).removeprefix("sha256:")
    assert named["a2"] == make_recipe(BASE, [(digest_of(2), 1.0)], tgi()).name
    pairs = [(each.digest, each.weight) for each in members]
    assert named["a3"] == make_recipe(BASE, pairs, tgi()).name


def test_the_digest_is_of_what_is_loaded_and_of_nothing_else() -> None:
    candidates = [adapter(1), adapter(2)]
    scores = {(0, 0): 1.0, (1, 1): 0.5}
    found = propose(target(20), candidates, measured([0.0, 0.0], scores, [0.5, 0.5]))
    other_traffic = propose(target(30), candidates, measured([0.0, 0.0], scores, [0.9, 0.1]))
    assert other_traffic.entries[0].gain != found.entries[0].gain
    assert other_traffic.digest == found.digest
    assert propose(target(10), candidates, measured([0.0, 0.0], scores)).digest != found.digest
    elsewhere = propose(replace(target(20), pool="q"), candidates, measured([0.0, 0.0], scores))
    assert elsewhere.digest != found.digest
