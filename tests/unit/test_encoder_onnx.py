"""ONNX Runtime gives the vectors of sentence-transformers, and reads both ends of a long text."""

import string
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorauter.encoder import (
    DEFAULT_ENCODER,
    MAX_CHARACTERS,
    OnnxEncoder,
    SentenceEncoder,
    encoder_directory,
    load_encoder,
)
from lorauter.encoder.onnx import ends, runs

WORDS = ["red", "orange", "yellow", "green", "blue", "black", "white", "seven", "eight", "north", "south"]
"""Each is one token."""
HOSTILE = [
    "",
    " ",
    "\n\t \r\n",
    "\0",
    "before\0after",
    "\x01\x02\x7f\ufffd",
    "\u200b\u200d\ufeff",
    "👍",
    "👩‍👩‍👧‍👦 family of 🏴󠁧󠁢󠁳󠁣󠁴󠁿 and 🇫🇷",
    "שלום עולם",
    "مرحبا بالعالم، كيف حالك؟",
    "\u202eright to left\u202c override",
    "你好世界",
    "こんにちは世界",
    "नमस्ते दुनिया",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "Café naïve ÅNGSTRÖM ﬁ ½",
    "[CLS] [SEP] [PAD] [MASK] [UNK]",
    "[PAD]",
    "x" * 5_000,
    "." * 100,
    " " * 5_000 + "far" + "\n" * 5_000,
    "<script>alert('x')</script>",
    "'; DROP TABLE tasks; --",
    "../../etc/passwd %s %n {0} ${HOME}",
    "\U0010ffff\ue000",
]
ORDINARY = [
    "Reverse the word: planet",
    "What is the capital of France?",
    "def f(x):\n    return x + 1",
    '{"role": "user", "content": [1, 2, 3]}',
    "3.14159 + 2.71828 = ?",
    "https://example.org/a/b?c=d#e",
    "ALL CAPITALS, and none",
    *(" ".join(WORDS[:count]) for count in range(1, 12)),
    *(f"{word} " * 12 for word in WORDS[:6]),
    " ".join(WORDS * 13),
    " ".join(WORDS * 23),
    " ".join(["word"] * 254),
]


@pytest.fixture(scope="module")
def reference():
    """The default encoder on sentence-transformers."""
    return SentenceEncoder(encoder_directory(DEFAULT_ENCODER), 1)


def test_vectors_are_those_of_sentence_transformers_when_texts_are_within_the_limit(encoder, reference):
    texts = HOSTILE + ORDINARY
    assert len(set(texts)) >= 50
    np.testing.assert_allclose(encoder.encode(texts), reference.encode(texts), atol=1e-5)


@pytest.mark.parametrize("length", [254, 255, 2_000])
def test_both_ends_are_read_when_a_text_is_longer_than_the_model_reads(encoder, reference, length):
    words = (WORDS * (length // len(WORDS) + 1))[:length]
    read = words if length == 254 else words[:127] + words[-127:]
    expected = reference.encode([" ".join(read)])
    np.testing.assert_allclose(encoder.encode([" ".join(words)]), expected, atol=1e-5)


def test_vector_changes_with_the_end_and_not_with_the_middle_when_a_text_is_long(encoder):
    filler = "The weather was fine on that day. " * 200
    start = "Here is a text. "
    sort, count = "Now sort its words by the alphabet.", "How many letters has its last word?"
    long = encoder.encode([start + filler + sort, start + filler + count, start + filler * 2 + sort])
    assert long[0] @ long[1] < 0.99
    np.testing.assert_allclose(long[0], long[2], atol=1e-5)
    short = encoder.encode([sort, count])
    assert long[0] @ short[0] > long[0] @ short[1]
    assert long[1] @ short[1] > long[1] @ short[0]


def test_end_is_read_when_a_text_has_more_characters_than_are_cut_into_tokens(encoder):
    filler = "The weather was fine on that day. " * (MAX_CHARACTERS // 20)
    vectors = encoder.encode([filler, filler + "Sort the words.", filler + "x" * MAX_CHARACTERS])
    assert np.isfinite(vectors).all()
    assert vectors[0] @ vectors[1] < 0.9999


def test_only_the_beginning_is_read_when_sentence_transformers_gets_a_very_long_text(reference):
    filler = " " * MAX_CHARACTERS
    vectors = reference.encode([filler, filler + "not read"])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_vectors_come_in_the_order_of_texts_whatever_that_is(encoder):
    texts = HOSTILE + ORDINARY
    order = np.random.default_rng(7).permutation(len(texts))
    shuffled = encoder.encode([texts[number] for number in order])
    np.testing.assert_allclose(shuffled, encoder.encode(texts)[order], atol=1e-5)


@given(st.lists(st.integers(2, 256), max_size=200), st.sampled_from([1, 32]))
def test_runs_hold_every_text_once_with_little_padding(lengths, most_texts):
    found = list(runs(lengths, most_texts))
    assert sorted(number for run in found for number in run) == list(range(len(lengths)))
    for run in found:
        sizes = [lengths[number] for number in run]
        assert sizes == sorted(sizes)
        assert len(run) <= most_texts
        assert len(run) == 1 or sizes[-1] * len(run) <= 512
        assert all((b - a) * count <= 10 for count, (a, b) in enumerate(pairwise(sizes), 1))


@given(st.text(string.printable), st.integers(2, 40))
def test_ends_are_what_is_kept_of_what_is_too_long(text, most):
    kept = ends(text, most)
    assert len(kept) <= most
    if len(text) <= most:
        assert kept == text
    else:
        assert len(kept) >= most - 1
        assert text.startswith(kept[: most // 2])
        assert text.endswith(kept[-(most // 2) :])


def test_vectors_are_the_same_when_threads_encode_at_once(encoder):
    texts = HOSTILE + ORDINARY
    expected = encoder.encode(texts)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: encoder.encode(texts), range(8)):
            np.testing.assert_array_equal(vectors, expected)


def test_vectors_do_not_depend_on_the_number_of_threads(encoder):
    texts = ORDINARY[:8]
    on_two = OnnxEncoder(encoder_directory(DEFAULT_ENCODER), threads=2)
    np.testing.assert_allclose(on_two.encode(texts), encoder.encode(texts), atol=1e-5)


def test_int8_has_near_vectors_and_another_digest(encoder):
    texts = HOSTILE + ORDINARY
    int8 = load_encoder(DEFAULT_ENCODER, precision="int8")
    vectors = int8.encode(texts)
    assert (vectors * encoder.encode(texts)).sum(axis=1).min() > 0.9
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert int8.digest != encoder.digest
    np.testing.assert_array_equal(vectors[3], int8.encode([texts[3]])[0])
