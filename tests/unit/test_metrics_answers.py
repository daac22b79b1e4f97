"""What choice accuracy, numeric match, JSON match and likelihood read out of an answer."""

import math

import pytest

from lorauter.errors import FailedPrecondition, InvalidArgument
from lorauter.metrics import metric

RIGHT_CHOICES = [
    ("B", "B"),
    (" b\n", "B"),
    ("(b)", "B"),
    ("[B]", "(B)"),
    ("B.", "(b)"),
    ("**B**", "B"),
    ("B) Paris", "B"),
    ("B) London", "B) Paris"),
    ("B, because it is large", "B"),
    ("Paris", "B) Paris"),
    ("paris is the capital", "B) Paris"),
    ("Option B", "B"),
    ("I think it is B.", "B"),
    ("A good question: (b)", "B"),
    ("The answer is (B).", "B"),
    ("I see A and C. The answer is: b", "B"),
    ("Answer: B) Paris", "B: Paris"),
    ("A is right", "A"),
    ("A dog", "C) A dog"),
    ("Vitamin C", "B) Vitamin C"),
    ("2", "2"),
    ("(2) two", "2. two"),
    ("I take number 2, not 3", "2"),
    ("entailment", "entailment"),
    ("Entailment.", "entailment"),
    ("the answer is entailment", "entailment"),
    ("Yes, it does", "yes"),
    ("answer: B", "answer: B"),
    ("...", "..."),
    ("the 1st", "The"),
]
WRONG_CHOICES = [
    ("", "B"),
    ("C", "B"),
    ("(C) not B", "B"),
    ("A) Paris", "B) Paris"),
    ("The answer is C, though B is close", "B"),
    ("because", "B"),
    ("a bad question", "A"),
    ("I do not know", "I"),
    ("it's B-rated", "B"),
    ("3", "2"),
    ("23", "2"),
    ("2.5", "2"),
    ("not entailment", "entailment"),
    ("entailments", "entailment"),
    ("no", "yes"),
    ("London", "B) Paris"),
]
RIGHT_NUMBERS = [
    ("42", "42"),
    ("It is 42.", "42"),
    ("40 + 2 = 42", "42.0"),
    ("-3.50", "-3.5"),
    ("\u22123", "-3"),
    ("+7", "7"),
    ("$1,234.50", "1234.5"),
    ("1,234, I believe", "1,234"),
    ("50%", "50"),
    ("1e3", "1000"),
    (".5", "0.5"),
    ("-0", "0"),
    ("so 5-3 leaves 2", "2"),
    ("6 * 7 = 42\n#### 42\n", "6 * 7\n#### 42"),
    ("123456789012345678901234567890.5", "123456789012345678901234567890.50"),
    ("x" * 100_000 + " 8", "8"),
]
WRONG_NUMBERS = [
    ("", "42"),
    ("forty-two", "42"),
    ("42 or 43", "42"),
    ("4.2", "42"),
    ("-42", "42"),
    ("-123456789012345678901234567890.5", "-123456789012345678901234567890.6"),
    ("123456789012345678901234567890.5", "123456789012345678901234567890"),
]
RIGHT_JSON = [
    ('{"a": 1, "b": [true, null]}', '{"b":[true,null],"a":1.0}'),
    ('```json\n{"a": 1}\n```', '{"a": 1}'),
    ("```\n[1]```", "[1]"),
    (' "x" ', '"x"'),
    ("1e2", "100"),
    ('"\\u00e9"', '"é"'),
    ('{"a": 1, "a": 2}', '{"a": 2}'),
    ("9" * 5_000, "9" * 5_000),
    ("[" * 64 + "]" * 64, "[" * 64 + "]" * 64),
    (json_brackets := '"' + "[" * 500 + '"', json_brackets),
]
WRONG_JSON = [
    ("", "1"),
    ("Here it is: 1", "1"),
    ("{'a': 1}", '{"a": 1}'),
    ("true", "1"),
    ("1", "true"),
    ("[1, 2]", "[2, 1]"),
    ("[1]", "[1, 1]"),
    ('{"a": 1}', '{"a": 1, "b": 2}'),
    ('"1"', "1"),
    ("null", "false"),
    ("NaN", "null"),
    ("[" * 65 + "]" * 65, "[]"),
    ("[" * 60_000, "[]"),
    ("1e999999999999999999999999", "1"),
    (" " * 70_000 + "1", "1"),
]


@pytest.mark.parametrize(("answer", "target"), RIGHT_CHOICES)
def test_choice_is_right_when_the_answer_names_the_option(answer, target):
    assert metric("choice_accuracy").score(answer, target) == 1.0


@pytest.mark.parametrize(("answer", "target"), WRONG_CHOICES)
def test_choice_is_wrong_when_the_answer_names_no_or_another_option(answer, target):
    assert metric("choice_accuracy").score(answer, target) == 0.0


@pytest.mark.parametrize(("answer", "target"), RIGHT_NUMBERS)
def test_number_is_right_when_the_last_one_equals_the_target(answer, target):
    assert metric("numeric_match").score(answer, target) == 1.0


@pytest.mark.parametrize(("answer", "target"), WRONG_NUMBERS)
def test_number_is_wrong_when_the_last_one_differs(answer, target):
    assert metric("numeric_match").score(answer, target) == 0.0


@pytest.mark.parametrize(("answer", "target"), RIGHT_JSON)
def test_json_is_right_when_the_values_are_equal(answer, target):
    assert metric("json_match").score(answer, target) == 1.0


@pytest.mark.parametrize(("answer", "target"), WRONG_JSON)
def test_json_is_wrong_when_the_values_differ_or_are_none(answer, target):
    assert metric("json_match").score(answer, target) == 0.0


@pytest.mark.parametrize(("likelihood", "score"), [(0.0, 1.0), (math.log(0.25), 0.25), (-math.inf, 0.0)])
def test_likelihood_is_the_mean_probability_of_a_token_when_a_pass_tells_it(likelihood, score):
    for exact in (False, True):
        assert metric("likelihood").from_pass(exact, likelihood) == pytest.approx(score)


def test_likelihood_says_so_when_the_backend_tells_none():
    with pytest.raises(FailedPrecondition) as caught:
        metric("likelihood").from_pass(True, math.nan)
    assert caught.value.reason == "NO_LIKELIHOOD"


@pytest.mark.parametrize(
    ("name", "target", "advice"),
    [
        ("choice_accuracy", " ?! ", "such as B, Paris or B) Paris"),
        ("numeric_match", "forty-two", "write digits"),
        ("numeric_match", "4 apples", "write digits"),
        ("numeric_match", "1e99999", "write digits"),
        ("numeric_match", "inf", "write digits"),
        ("json_match", "{'a': 1}", "Expecting property name"),
        ("json_match", "NaN", "NaN is not JSON"),
        ("json_match", "[" * 65 + "]" * 65, "deeper than 64"),
        ("json_match", "[" * 60_000, "deeper than 64"),
        ("json_match", "1e999999999999999999999999", "out of range"),
        ("rouge1", "今天", "use chrf"),
        ("rouge2", "yes", "1 of at least 2 words"),
        ("rougeL", "...", "write more"),
        ("token_f1", "The.", "exact_match"),
        ("bleu", " <skipped> -\n", "write the text"),
        ("chrf", " \n", "write the text"),
        ("likelihood", "", "write the text"),
    ],
)
def test_target_is_refused_with_advice_when_the_metric_cannot_read_it(name, target, advice):
    with pytest.raises(InvalidArgument) as caught:
        metric(name).check_target(target)
    assert caught.value.reason == "UNREADABLE_TARGET"
    assert caught.value.metadata == {"metric": name}
    assert advice in caught.value.message
    assert repr(name) in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("exact_match", " "),
        ("choice_accuracy", "(c)"),
        ("choice_accuracy", "не указано"),
        ("numeric_match", "-$1,234.50"),
        ("numeric_match", "12 %"),
        ("numeric_match", "so it is 7 * 6\n#### 42"),
        ("json_match", '{"a": [1, 2.5, null]}'),
        ("rouge1", "yes"),
        ("rouge2", "yes sir"),
        ("rougeL", "42"),
        ("token_f1", "今天"),
        ("bleu", "😀"),
        ("chrf", "今天"),
        ("likelihood", "x"),
    ],
)
def test_target_is_taken_when_the_metric_can_read_it(name, target):
    metric(name).check_target(target)
