"""A canary tells an adapter from none and from another one, and raises no false alarm."""

from __future__ import annotations

import ast
import math
import random
import subprocess
import sys

import pytest

from lorauter.canary import CANARY_TEXT, SAME, agrees, effect, has_effect

DRAW = random.Random(7)
BASE = [None, *(DRAW.uniform(-20, 0) for _ in range(200))]
MOVES = [None, *(DRAW.gauss(0, 1) for _ in range(200))]
OTHER_MOVES = [None, *(DRAW.gauss(0, 1) for _ in range(200))]


def plus(reading, moves, size: float = 1.0):
    """A reading whose tokens moved."""
    return [None if a is None else a + size * b for a, b in zip(reading, moves, strict=True)]


def noisy(reading, size: float, seed: int = 1):
    """A reading as another precision or another batch has it."""
    draw = random.Random(seed)
    return [None if value is None else value + draw.gauss(0, size) for value in reading]


def test_the_text_has_words_digits_code_and_punctuation() -> None:
    assert 40 <= len(CANARY_TEXT.split()) <= 60
    assert CANARY_TEXT.isascii()
    assert "\n" not in CANARY_TEXT
    assert sum(character.isdigit() for character in CANARY_TEXT) >= 20
    assert set('(){}[]:,.$%"#?;') <= set(CANARY_TEXT)


def test_an_effect_is_the_mean_difference_of_what_both_tell() -> None:
    assert effect([None, -1.0, -2.0], [None, -1.5, -1.0]) == pytest.approx(0.75)
    assert effect([None, -1.0, -2.0], [-3.0, -1.5, None]) == pytest.approx(0.5)
    assert effect([-1.0, -2.0], [-1.0, math.nan]) == 0


@pytest.mark.parametrize("reading", [[], BASE[1:], [*BASE, -1.0], [None] * len(BASE), [math.nan] * len(BASE)])
def test_nothing_is_told_of_readings_that_do_not_compare(reading) -> None:
    assert math.isnan(effect(BASE, reading))
    assert has_effect(BASE, reading) is None
    assert agrees(BASE, reading, BASE, plus(BASE, MOVES)) is None
    assert agrees(BASE, plus(BASE, MOVES), reading, reading) is None


def test_an_adapter_that_is_not_there_has_no_effect() -> None:
    assert has_effect(BASE, BASE) is False
    assert has_effect(BASE, plus(BASE, MOVES, SAME / 10)) is False
    assert has_effect(BASE, plus(BASE, MOVES, 10 * SAME)) is True


def test_what_batches_change_of_the_base_is_no_effect() -> None:
    again, absent = noisy(BASE, 0.02, seed=1), noisy(BASE, 0.02, seed=2)
    assert has_effect(BASE, absent) is True
    assert has_effect(BASE, absent, again) is False
    assert has_effect(BASE, plus(absent, MOVES, 0.2), again) is True
    assert has_effect(BASE, BASE, again) is False
    assert has_effect(BASE, plus(BASE, MOVES), again[1:]) is True


@pytest.mark.parametrize("size", [0.5, 1.0, 5.0])
def test_an_adapter_agrees_with_itself_in_another_precision(size: float) -> None:
    served = noisy(plus(BASE, MOVES, size), 0.06, seed=3)
    assert agrees(noisy(BASE, 0.06), served, BASE, plus(BASE, MOVES, size)) is True


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, math.sqrt(8), -1.0])
def test_an_adapter_at_another_scale_does_not_agree(scale: float) -> None:
    served = plus(noisy(BASE, 0.06), MOVES, scale)
    assert agrees(noisy(BASE, 0.06), served, BASE, plus(BASE, MOVES)) is False


def test_another_adapter_does_not_agree() -> None:
    assert agrees(BASE, plus(BASE, OTHER_MOVES), BASE, plus(BASE, MOVES)) is False
    mixed = plus(plus(BASE, MOVES), OTHER_MOVES, 0.5)
    assert agrees(BASE, mixed, BASE, plus(BASE, MOVES)) is False


def test_it_cannot_be_told_where_the_effect_is_below_what_the_servers_differ_by() -> None:
    weak = plus(BASE, MOVES, 0.05)
    assert agrees(noisy(BASE, 0.06), noisy(weak, 0.06, seed=3), BASE, weak) is None
    assert agrees(BASE, BASE, BASE, plus(BASE, MOVES, SAME)) is None
    assert agrees(BASE, BASE, BASE, BASE) is None


def test_it_cannot_be_told_where_as_many_tokens_are_not_the_same_ones() -> None:
    elsewhere = [BASE[0], *reversed(BASE[1:])]
    assert agrees(elsewhere, plus(elsewhere, MOVES), BASE, plus(BASE, OTHER_MOVES)) is None


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import lorauter.canary; print(set(sys.modules) - before)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not {"numpy", "grpc", "pydantic"} & set(ast.literal_eval(loaded))
