"""Where adapters go: the same place from everywhere, and elsewhere where that is overloaded."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lorauter_gateway.domain.placement import BOUND, LEAST_BOUND, Place, load_bound, ordered, rendezvous

NAMES = [f"{number:064x}" for number in range(600)]
REPLICAS = st.lists(st.text("abcdef", min_size=1, max_size=6), unique=True, min_size=1, max_size=8)


def test_order_is_fixed_for_all_time() -> None:
    """Gateways of different versions run side by side, and have to agree."""
    assert rendezvous("mix-0123456789abcdef", ["r0", "r1", "r2"]) == ["r1", "r0", "r2"]


@given(st.text(max_size=20), REPLICAS, st.randoms())
def test_order_depends_on_the_set_of_replicas_alone(name: str, replicas: list[str], random: Random) -> None:
    shuffled = list(replicas)
    random.shuffle(shuffled)
    assert rendezvous(name, shuffled) == rendezvous(name, replicas)


@given(st.text(max_size=20), REPLICAS, st.data())
def test_lost_replica_moves_only_what_was_first_there(
    name: str, replicas: list[str], data: st.DataObject
) -> None:
    lost = data.draw(st.sampled_from(replicas))
    left = [replica for replica in replicas if replica != lost]
    assert rendezvous(name, left) == [r for r in rendezvous(name, replicas) if r != lost]


def test_names_are_spread_evenly() -> None:
    first = Counter(rendezvous(name, ["r0", "r1", "r2", "r3"])[0] for name in NAMES)
    assert len(first) == 4
    assert all(110 < count < 190 for count in first.values())


def test_bound_is_a_share_of_the_mean_and_not_too_low() -> None:
    assert load_bound([]) == load_bound([0, 1]) == LEAST_BOUND
    assert load_bound([40, 20]) == BOUND * 30


def test_replica_over_its_bound_comes_last_and_within_it_first() -> None:
    by_hash = rendezvous("n", ["a", "b", "c"])
    calm = [Place(replica, 3, loads=True) for replica in "abc"]
    assert ordered("n", calm, 0) == by_hash
    busy = [Place(r, 30 if r == by_hash[0] else 3, loads=True) for r in "abc"]
    assert ordered("n", busy, 0) == [*by_hash[1:], by_hash[0]]


def test_replica_without_a_slot_comes_after_one_over_its_bound() -> None:
    by_hash = rendezvous("n", ["a", "b", "c"])
    in_flight = {by_hash[0]: 0, by_hash[1]: 30, by_hash[2]: 0}
    places = [Place(r, in_flight[r], loads=True, has_no_slot=r == by_hash[0]) for r in "abc"]
    assert ordered("n", places, 0) == [by_hash[2], by_hash[1], by_hash[0]]


def test_others_come_by_load_and_equals_take_turns() -> None:
    places = [Place("a", 2), Place("b", 0), Place("c", 0)]
    firsts = [ordered("n", places, turn)[0] for turn in range(6)]
    assert set(firsts) == {"b", "c"}
    assert all(ordered("n", places, turn)[-1] == "a" for turn in range(6))
    equal = [Place("a", 0), Place("b", 0)]
    assert [ordered("", equal, turn)[0] for turn in range(4)] == ["a", "b", "a", "b"]


def test_base_goes_where_least_is_under_way_even_where_adapters_are_loaded() -> None:
    places = [Place("a", 5, loads=True), Place("b", 1, loads=True)]
    assert all(ordered("", places, turn)[0] == "b" for turn in range(4))


def test_kinds_are_mixed_by_what_is_under_way() -> None:
    places = [Place("loads", 3, loads=True), Place("sets", 1)]
    assert ordered("n", places, 0) == ["sets", "loads"]
    assert ordered("n", [Place("loads", 1, loads=True), Place("sets", 1)], 0) == ["loads", "sets"]
    no_slot = [Place("loads", 0, loads=True, has_no_slot=True), Place("sets", 1)]
    assert ordered("n", no_slot, 0) == ["sets", "loads"]


PLACES = st.lists(
    st.builds(
        Place,
        st.text("abcdef", min_size=1, max_size=6),
        st.integers(0, 50),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    unique_by=lambda place: place.replica,
    min_size=1,
    max_size=8,
)


@given(st.sampled_from(["", "n"]), PLACES, st.integers(0, 100))
def test_every_replica_is_tried_once_and_the_last_ones_last(
    name: str, places: list[Place], turn: int
) -> None:
    found = ordered(name, places, turn)
    assert sorted(found) == sorted(place.replica for place in places)
    is_last = {place.replica: place.is_last for place in places}
    assert [is_last[replica] for replica in found] == sorted(is_last.values())
