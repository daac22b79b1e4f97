"""ROUGE, token F1, BLEU and chrF against the values of their reference implementations."""

import pytest
import sacrebleu

from lorauter.metrics import metric

# (answer, target, rouge1, rouge2, rougeL) of rouge-score 0.1.2, RougeScorer without stemmer, fmeasure
ROUGE = [
    ("the cat sat on the mat", "the cat is on the mat", 0.833333333333, 0.6, 0.833333333333),
    ("police kill the gunman", "police killed the gunman", 0.75, 0.333333333333, 0.75),
    ("gunman the police killed", "police killed the gunman", 1.0, 0.333333333333, 0.5),
    (
        "The quick brown fox jumps over the lazy dog.",
        "A quick brown dog jumps over the lazy fox!",
        0.888888888889,
        0.5,
        0.666666666667,
    ),
    ("the the the the", "the cat", 0.333333333333, 0.0, 0.333333333333),
    ("", "a b", 0.0, 0.0, 0.0),
    ("re-run U.S. 3.14", "rerun us 3.14", 0.4, 0.25, 0.4),
    ("École normale", "ecole normale", 0.5, 0.0, 0.5),
    ("one\ntwo\nthree", "three two one", 1.0, 0.0, 0.333333333333),
    ("a_b C-D", "a b c d", 1.0, 1.0, 1.0),
    ("x", "x y", 0.666666666667, 0.0, 0.666666666667),
    ("testing one two", "testing", 0.5, 0.0, 0.5),
]

# (answer, target, F1) of compute_f1 in SQuAD 2.0's evaluation script, as transformers 4.57.1 holds it
TOKEN_F1 = [
    ("The cat sat.", "a cat sat on the mat", 0.666666666667),
    ("Paris", "Paris, France", 0.666666666667),
    ("New York City", "york", 0.5),
    ("a b b", "b b b", 0.8),
    ("the", "an", 1.0),
    ("", "cat", 0.0),
    ("Don't stop", "dont stop!", 1.0),
    ("42", "forty two", 0.0),
    ("naïve café", "naive café", 0.5),
    ("x-y z", "xy z", 1.0),
    ("cat cat", "cat", 0.666666666667),
]

TRANSLATIONS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("The dog bit the man.", "The dog had bit the man."),
    ("cat", "cat"),
    ("Paris", "Paris, France"),
    ("", "something"),
    ("Guten Morgen, Herr Müller!", "Guten Tag, Frau Müller!"),
    ("今天天气很好", "今天天气不错"),
    ("the the the the the", "the cat"),
    ("It costs $1,234.50, doesn't it?", "It cost 1,234.50 dollars."),
]


@pytest.mark.parametrize(("answer", "target", "rouge1", "rouge2", "rouge_l"), ROUGE)
def test_rouge_is_the_reference_value_when_computed(answer, target, rouge1, rouge2, rouge_l):
    scores = [metric(name).score(answer, target) for name in ("rouge1", "rouge2", "rougeL")]
    assert scores == pytest.approx([rouge1, rouge2, rouge_l], abs=1e-11)


@pytest.mark.parametrize(("answer", "target", "score"), TOKEN_F1)
def test_token_f1_is_the_reference_value_when_computed(answer, target, score):
    assert metric("token_f1").score(answer, target) == pytest.approx(score, abs=1e-11)


@pytest.mark.parametrize(("answer", "target"), TRANSLATIONS)
def test_bleu_is_the_value_of_sacrebleu_when_computed(answer, target):
    wanted = sacrebleu.sentence_bleu(answer, [target], use_effective_order=True).score / 100
    assert metric("bleu").score(answer, target) == pytest.approx(wanted)


@pytest.mark.parametrize(("answer", "target"), TRANSLATIONS)
def test_chrf_is_the_value_of_sacrebleu_when_computed(answer, target):
    wanted = sacrebleu.sentence_chrf(answer, [target]).score / 100
    assert metric("chrf").score(answer, target) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("bleu", "nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp"),
        ("chrf", "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no"),
    ],
)
def test_docstring_states_the_signature_when_sacrebleu_computes(name, signature):
    computes = {
        "bleu": sacrebleu.BLEU(effective_order=True),
        "chrf": sacrebleu.CHRF(),
    }[name]
    computes.sentence_score("a", ["a"])
    assert str(computes.get_signature()).startswith(signature)
    assert signature in metric(name).of_text.__doc__
