"""Which text is routed, and what its terms are."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorauter.errors import InvalidArgument
from lorauter.routing.lexical import MAX_CHARACTERS, term_frequencies, term_hash, tokens
from lorauter.routing.text import MAX_QUERY_BYTES, routed_text

SYSTEM = {"role": "system", "content": "Answer in French."}
USER = {"role": "user", "content": "Who wrote Hamlet?"}


def test_prompt_is_routed_as_it_is_when_it_is_text() -> None:
    assert routed_text("  Who wrote\nHamlet?  ") == "  Who wrote\nHamlet?  "


def test_system_text_precedes_the_first_user_turn_when_messages_are_given() -> None:
    assert routed_text([SYSTEM, USER]) == "Answer in French.\n\nWho wrote Hamlet?"


def test_routed_text_stays_the_same_when_a_conversation_goes_on() -> None:
    later = [{"role": "assistant", "content": "Shakespeare."}, {"role": "user", "content": "When?"}]
    assert routed_text([SYSTEM, USER, *later, SYSTEM]) == routed_text([SYSTEM, USER])


@pytest.mark.parametrize("text", ["🦜🦜", "שלום עולם", "مرحبا", "a", "e\u0301", "x" * MAX_QUERY_BYTES])
def test_text_is_accepted_when_it_is_unusual_but_valid(text: str) -> None:
    assert routed_text(text) == text
    assert routed_text([{"role": "user", "content": text}]) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "EMPTY_QUERY"),
        (" \n\t\u2003", "EMPTY_QUERY"),
        ("a\0b", "QUERY_HAS_NUL"),
        ("a\ud800b", "QUERY_NOT_UNICODE"),
        ("x" * (MAX_QUERY_BYTES + 1), "QUERY_TOO_LARGE"),
        ("🦜" * (MAX_QUERY_BYTES // 4 + 1), "QUERY_TOO_LARGE"),
    ],
)
def test_text_is_refused_with_a_reason_when_it_cannot_be_routed(text: str, reason: str) -> None:
    for source in (text, [{"role": "user", "content": text}]):
        with pytest.raises(InvalidArgument) as refused:
            routed_text(source)
        assert refused.value.reason == reason
        assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "EMPTY_QUERY"),
        ([SYSTEM], "NO_USER_TURN"),
        ([{"role": "robot", "content": "x"}], "INVALID_ROLE"),
        ([{"content": "x"}], "INVALID_ROLE"),
        ([{"role": "user"}], "EMPTY_QUERY"),
        ([{"role": "system", "content": "x" * MAX_QUERY_BYTES}, USER], "QUERY_TOO_LARGE"),
    ],
)
def test_messages_are_refused_with_a_reason_when_no_turn_can_be_routed(
    messages: list[dict[str, str]], reason: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        routed_text(messages)
    assert refused.value.reason == reason


def test_numpy_stays_unloaded_when_only_the_routed_text_is_needed() -> None:
    code = "import sys; from lorauter.routing import routed_text; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_words_and_punctuation_are_tokens_when_text_is_cut() -> None:
    assert tokens("Don't: stop!! Ärger") == ["don", "'", "t", ":", "stop", "!", "!", "ärger"]


def test_terms_are_counted_up_to_three_tokens_when_they_repeat() -> None:
    terms = term_frequencies("a b a b")
    assert terms[term_hash(["a"])] == 2.0
    assert terms[term_hash(["a", "b"])] == 2.0
    assert terms[term_hash(["a", "b", "a"])] == 1.0
    assert len(terms) == 2 + 2 + 2


@pytest.mark.parametrize(
    ("composed", "apart"), [("Café à", "Cafe\u0301 a\u0300"), ("Ǖber", "U\u0308\u0304ber")]
)
def test_terms_are_the_same_when_accents_are_characters_of_their_own(composed: str, apart: str) -> None:
    assert term_frequencies(composed) == term_frequencies(apart)


@pytest.mark.parametrize("filling", ["word ", "!", "字.", "e\u0301\u0316", "\u0301", "x"])
def test_a_text_costs_no_more_when_it_is_twice_as_long(filling: str) -> None:
    half, whole = (
        filling * (size // len(filling.encode())) for size in (MAX_QUERY_BYTES // 2, MAX_QUERY_BYTES)
    )
    assert len(tokens(f"First {half} last")) == len(tokens(f"First {whole} last")) <= MAX_CHARACTERS
    assert (tokens(f"First {whole} last")[0], tokens(f"First {whole} last")[-1]) == ("first", "last")


def test_hashes_are_those_of_other_processes_when_computed_again() -> None:
    assert term_hash(["hello", "world"]) == 0x0D4A1185
    code = "from lorauter.routing import term_frequencies; print(sorted(term_frequencies('to be, or')))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(sorted(term_frequencies("to be, or")))


@given(st.text())
def test_terms_are_finite_32_bit_counts_when_text_is_anything(text: str) -> None:
    words = tokens(text)
    terms = term_frequencies(text)
    assert all(0 <= term < 2**32 and count >= 1 for term, count in terms.items())
    assert sum(terms.values()) == sum(max(0, len(words) - size + 1) for size in (1, 2, 3))
