"""Which compositions are measured, and when one beats the best single adapter."""

from __future__ import annotations

import numpy as np
import pytest

from lorauter.matching import candidates, judged, set_name
from lorauter.matching.compositions import chances_of_being_best
from lorauter.matching.paired import standard_errors

NAN = float("nan")


def scores(*right: int, examples: int = 12) -> np.ndarray:
    """Rows that get the first so many examples right."""
    return np.array([[float(place < count) for place in range(examples)] for count in right])


def test_no_candidate_when_fewer_than_two_adapters_compose() -> None:
    assert candidates(scores()) == []
    assert candidates(scores(9)) == []


def test_two_and_three_best_are_candidates_evenly_and_by_their_chances() -> None:
    found = candidates(scores(9, 7, 4))
    even = [each for each in found if len(set(each)) == 1]
    assert (0.5, 0.5) in even
    assert [len(each) for each in found] == [2, 2, 3, 3]
    by_chance = found[1]
    assert by_chance[0] > by_chance[1]
    for weights in found:
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        assert min(weights) > 0
        assert max(round(weight * 100) / 100 - weight for weight in weights) == pytest.approx(0)


def test_candidates_are_one_when_they_have_the_same_weights() -> None:
    assert candidates(scores(6, 6)) == [(0.5, 0.5)]


def test_no_candidate_has_a_member_of_no_weight() -> None:
    assert candidates(scores(190, 0, examples=200)) == [(0.5, 0.5)]


def test_only_examples_that_all_were_measured_on_make_chances() -> None:
    known = scores(9, 7)
    partly = np.concatenate([known, [[NAN, 1.0], [1.0, NAN]]], axis=1)
    assert candidates(partly) == candidates(known)
    assert candidates(np.full((2, 3), NAN)) == [(0.5, 0.5)]


def test_chances_are_those_of_drawing_the_means_many_times() -> None:
    measured = scores(9, 7, 4)
    means = measured.mean(axis=1)
    errors = [standard_errors(row[None])[0][0] for row in measured]
    drawn = np.random.default_rng(0).normal(means, errors, size=(200_000, 3)).argmax(axis=1)
    assert chances_of_being_best(measured) == pytest.approx(np.bincount(drawn) / len(drawn), abs=0.005)


def test_composition_wins_only_beyond_one_standard_error_of_the_paired_differences() -> None:
    single = scores(6)[0]
    better, hardly = scores(10)[0], scores(7)[0]
    won = judged(single, better)
    assert won.wins
    assert [won.score, won.count, won.gain] == pytest.approx([10 / 12, 12, 4 / 12])
    assert won.gain_error == pytest.approx(standard_errors((better - single)[None])[0][0])
    assert judged(single, hardly).gain > 0
    assert not judged(single, hardly).wins
    assert not judged(single, single).wins
    assert not judged(better, single).wins


def test_name_depends_on_members_and_weights_and_not_on_their_order() -> None:
    name = set_name([("sha256:a", 0.6), ("sha256:b", 0.4)])
    assert name == set_name([("sha256:b", 0.4), ("sha256:a", 0.6)])
    assert name.startswith("mix-")
    assert len({name, set_name([("sha256:a", 0.4), ("sha256:b", 0.6)]), set_name([("sha256:a", 0.6)])}) == 3
