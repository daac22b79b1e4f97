"""What holds for every metric and every text."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorauter.errors import InvalidArgument
from lorauter.metrics import METRIC_NAMES, metric
from lorauter.metrics.rouge import common_length
from tests.budgets import tries

OF_TEXT = [name for name in METRIC_NAMES if metric(name).reads_text]
OF_PASS = [name for name in METRIC_NAMES if not metric(name).needs_generation]

WORDS = [
    "the answer is",
    "answer:",
    "(B)",
    "b)",
    "A",
    "-1,234.5e3",
    "é",
    "今",
    "😀",
    "true",
    "NaN",
    "<skipped>",
]
SIGNS = [
    " ",
    "\n",
    "####",
    "%",
    "$",
    ",",
    ".",
    "\x00",
    "\ud800",
    "```json\n",
    "\n```",
    "[" * 70,
    "]" * 70,
    '{"a": 1}',
]
PIECES = st.sampled_from(WORDS + SIGNS)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(codec="ascii"), max_size=60),
    st.lists(PIECES, max_size=12).map("".join),
)

LARGE = {
    "digits": "9" * 200_000,
    "thousands": "1" + ",111" * 50_000 + ",",
    "exponents": "1e" * 100_000,
    "deep arrays": "[" * 100_000,
    "deep objects": '{"a":' * 30_000,
    "quotes": '"' * 60_000,
    "white space": "answer" + " " * 200_000,
    "line ends": "```json" + "\n" * 60_000,
    "labels": "A " * 100_000,
    "stars": "*" * 200_000,
    "words": "a b c d " * 50_000,
    "emoji": "😀" * 200_000,
}
"""Texts on which a careless pattern or parser would not come to an end."""


def readable(name, target):
    try:
        metric(name).check_target(target)
    except InvalidArgument:
        return False
    return True


@pytest.mark.parametrize("name", OF_TEXT)
@settings(max_examples=tries(100, 25))
@given(prediction=TEXTS, target=TEXTS)
def test_score_is_in_range_when_the_texts_are_any(name, prediction, target):
    assert 0 <= metric(name).score(prediction, target) <= 1


@pytest.mark.parametrize("name", OF_TEXT)
@settings(max_examples=tries(100, 25))
@given(target=TEXTS)
def test_score_is_one_when_the_answer_is_a_readable_target(name, target):
    if readable(name, target):
        assert metric(name).score(target, target) == pytest.approx(1)


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("name", OF_TEXT)
def test_score_comes_to_an_end_when_a_text_is_large(name, text):
    for prediction, target in ((text, text[1:]), (text, "12"), ("12", text)):
        assert 0 <= metric(name).score(prediction, target) <= 1
        readable(name, target)


@pytest.mark.parametrize("name", OF_PASS)
@given(exact=st.booleans(), likelihood=st.floats(max_value=0))
def test_score_of_a_pass_is_in_range_when_the_likelihood_is_any(name, exact, likelihood):
    assert 0 <= metric(name).from_pass(exact, likelihood) <= 1


@pytest.mark.parametrize("name", OF_PASS)
def test_score_of_a_pass_is_one_when_the_target_is_certain(name):
    assert metric(name).from_pass(True, 0.0) == 1.0
    assert metric(name).from_pass(False, -math.inf) == 0.0


@given(
    left=st.lists(st.sampled_from("abc"), max_size=12), right=st.lists(st.sampled_from("abc"), max_size=12)
)
def test_common_length_is_that_of_the_recurrence_when_computed_by_bits(left, right):
    row = [0] * (len(left) + 1)
    for word in right:
        before = row[:]
        for index, other in enumerate(left, 1):
            row[index] = before[index - 1] + 1 if word == other else max(before[index], row[index - 1])
    assert common_length(left, right) == row[-1]
