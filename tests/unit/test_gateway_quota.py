"""What requests take of their keys' limits, and what is said of it."""

from __future__ import annotations

import asyncio

import pytest

from lorauter.access import Caller, Scope
from lorauter.errors import Exhausted, InvalidArgument, Unavailable
from lorauter_gateway.domain.model import Generation, Message, Sampling, Target
from lorauter_gateway.domain.quota import Left, Taken, answer_estimate, prompt_estimate, too_large
from lorauter_gateway.service.quotas import Quotas

LIMITED = Caller("t", frozenset({Scope.INVOKE}), "k", requests_per_minute=10, tokens_per_minute=1000)


def generation(prompt="x" * 41, tokens: int | None = 30) -> Generation:
    return Generation(prompt, Target(), Sampling(max_new_tokens=tokens), 5, LIMITED)


class Books:
    """Takes everything, or says what it is told; notes what is corrected."""

    def __init__(self, *answers: Taken) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.corrections: list[tuple[int, int]] = []

    async def take(self, caller: Caller, tokens: int) -> Taken:
        self.asked += 1
        return self.answers.pop(0) if self.answers else Taken(Left(10, 9, 6), Left(1000, 960, 3))

    async def correct(self, caller: Caller, requests: int, tokens: int) -> None:
        self.corrections.append((requests, tokens))


def test_prompts_are_estimated_by_their_bytes_and_answers_by_what_bounds_them() -> None:
    assert prompt_estimate(generation()) == 11
    assert prompt_estimate(generation("é" * 8)) == 4
    assert prompt_estimate(generation((Message("user", "x" * 8), Message("assistant", "y")))) == 11
    assert answer_estimate(generation()) == 30
    assert answer_estimate(generation(tokens=None)) == 256


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "0ms"), (0.0171, "18ms"), (1.2, "2s"), (59.5, "1m0s"), (360, "6m0s")]
)
def test_durations_are_written_as_openai_does(seconds: float, said: str) -> None:
    headers = Taken(Left(10, 3, seconds), None).headers()
    assert headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": said,
    }


def test_debts_are_no_remainder() -> None:
    assert Taken(None, Left(10, -7, 90)).headers()["x-ratelimit-remaining-tokens"] == "0"


def test_a_refusal_names_the_limit_that_lasts_longer() -> None:
    requests, tokens = Left(10, 0, 60), Left(1000, 5, 60)
    assert "10 requests" in Taken(requests, tokens, 2.4, is_full=True).refusal().message
    refused = Taken(requests, tokens, 2.4, is_full=False).refusal()
    assert "1000 tokens" in refused.message
    assert refused.metadata["retry_after_seconds"] == "3"
    assert "retry_after_seconds" not in too_large(1500, 1000).metadata


@pytest.mark.parametrize(
    ("error", "used", "pieces", "corrected"),
    [
        (None, 20, 9, [(0, -21)]),
        (None, 60, 40, [(0, 19)]),
        (None, 41, 30, []),
        (Unavailable("X", "x"), None, 0, [(-1, -41)]),
        (Exhausted("X", "x"), None, 0, [(-1, -41)]),
        (InvalidArgument("X", "x"), None, 0, [(0, -41)]),
        (Unavailable("X", "x"), None, 5, [(0, -25)]),
        (asyncio.CancelledError(), None, 5, [(0, -25)]),
        (asyncio.CancelledError(), None, 0, []),
    ],
)
async def test_what_was_not_used_is_given_back_once(error, used, pieces, corrected) -> None:
    books = Books()
    quotas = Quotas(books, allows_unchecked=False)
    charging = quotas.begin(LIMITED, generation())
    assert charging
    charge = await charging
    charge.end(error, used, pieces)
    charge.end(None, 0, 0)
    await quotas.close()
    assert books.corrections == corrected


async def test_keys_without_limits_ask_nobody() -> None:
    books = Books()
    quotas = Quotas(books, allows_unchecked=False)
    assert quotas.begin(Caller("t", frozenset({Scope.INVOKE}), "k"), generation()) is None
    assert books.asked == 0


async def test_a_key_that_has_no_request_left_is_refused_for_a_second_without_asking() -> None:
    now = 100.0
    refused = Taken(Left(10, 0, 60), None, wait_seconds=6, is_full=True)
    books = Books(refused)
    quotas = Quotas(books, allows_unchecked=False, clock=lambda: now)
    quotas.check(LIMITED)
    for _ in range(5):
        with pytest.raises(Exhausted):
            await quotas.begin(LIMITED, generation())
    with pytest.raises(Exhausted):
        quotas.check(LIMITED)
    assert books.asked == 1
    now += 1.01
    quotas.check(LIMITED)
    await quotas.begin(LIMITED, generation())
    assert books.asked == 2


async def test_too_few_tokens_for_one_request_may_do_for_another() -> None:
    books = Books(Taken(Left(10, 5, 30), Left(1000, 20, 60), wait_seconds=6, is_full=False))
    quotas = Quotas(books, allows_unchecked=False)
    with pytest.raises(Exhausted):
        await quotas.begin(LIMITED, generation())
    await quotas.begin(LIMITED, generation(tokens=1))
    assert books.asked == 2
