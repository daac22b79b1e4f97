"""Rules of generation that need no model: text, stops, the choice of tokens, slices, bodies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorauter_engine.api.openai_schemas import ChatRequest
from lorauter_engine.api.schemas import GenerateRequest
from lorauter_engine.domain.sampling import Sampler
from lorauter_engine.domain.text import Detokenizer, StopWatch
from lorauter_engine.domain.values import Sampling, ScoreItem
from lorauter_engine.service.scoring import slices


class Bytes:
    """A decoder whose tokens are bytes."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=60), st.text(max_size=10))
def test_pieces_join_to_the_text_when_tokens_are_single_bytes(text: str, prompt: str) -> None:
    detokenizer = Detokenizer(Bytes(), list(prompt.encode()))
    pieces = [detokenizer.add([byte]) for byte in text.encode()]
    assert detokenizer.text == "".join(pieces)
    unfinished = len(text) - len(text.rstrip("\ufffd"))
    assert detokenizer.text == text[: len(text) - min(3, unfinished)]


@given(st.binary(max_size=80))
def test_nothing_is_lost_but_an_unfinished_end_when_bytes_are_garbage(data: bytes) -> None:
    detokenizer = Detokenizer(Bytes(), [])
    for byte in data:
        detokenizer.add([byte]).encode("utf-8")
    whole = data.decode("utf-8", errors="replace")
    assert whole.rstrip("\ufffd").startswith(detokenizer.text.rstrip("\ufffd")) or len(data) > 18
    assert detokenizer.text.replace("\ufffd", "") == whole.replace("\ufffd", "")


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    st.integers(1, 5),
)
def test_the_first_stop_is_found_when_text_grows_in_any_steps(text: str, stops: list[str], size: int) -> None:
    watch = StopWatch(stops)
    found = None
    for end in range(size, len(text) + size, size):
        grown = text[:end]
        found = watch.find(grown)
        if found:
            break
        held = watch.held_back(grown)
        assert not any(stop in grown[: len(grown) - held] for stop in stops)
    starts = [text.find(stop) for stop in stops if stop in text]
    assert (found is None) == (not starts)
    if found:
        assert text[found[0] : found[1]] in stops
        assert found[0] in [i for stop in stops for i in range(len(text)) if text.startswith(stop, i)]


def chosen(logits: list[float], sampling: Sampling, draws: int = 400) -> dict[int, float]:
    counts: dict[int, int] = {}
    for seed in range(draws):
        made = Sampling(**{**{s: getattr(sampling, s) for s in Sampling.__slots__}, "seed": seed})
        sampler = Sampler(made, [0])
        token = sampler.choose(sampler.scores(torch.tensor(logits)))
        counts[token] = counts.get(token, 0) + 1
    return {token: count / draws for token, count in counts.items()}


def test_draws_follow_the_probabilities_and_filters() -> None:
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    free = chosen(logits, Sampling(do_sample=True))
    assert free[0] == pytest.approx(0.5, abs=0.1)
    assert free[1] == pytest.approx(0.3, abs=0.1)
    assert set(chosen(logits, Sampling(do_sample=True, top_k=2))) == {0, 1}
    assert set(chosen(logits, Sampling(do_sample=True, top_p=0.6))) == {0, 1}
    assert set(chosen(logits, Sampling(do_sample=True, top_p=0.4))) == {0}
    assert set(chosen(logits, Sampling(do_sample=True, temperature=0.01))) == {0}
    assert set(chosen(logits, Sampling(do_sample=True, typical_p=0.2))) == {1}


def test_penalties_change_scores_when_tokens_were_seen() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), [1])
    scores = sampler.scores(torch.tensor([2.0, 3.0, -1.0]))
    assert torch.allclose(scores, torch.log_softmax(torch.tensor([2.0, 1.5, -1.0]), -1))
    sampler = Sampler(Sampling(frequency_penalty=0.5, presence_penalty=1.0), [1])
    logits = torch.tensor([2.0, 3.0, -1.0])
    assert [sampler.choose(sampler.scores(logits)) for _ in range(3)] == [1, 0, 1]
    assert torch.equal(logits, torch.tensor([2.0, 3.0, -1.0]))


@given(st.lists(st.integers(2, 300), min_size=1, max_size=60), st.integers(64, 512))
def test_slices_hold_every_item_once_within_the_budget(lengths: list[int], budget: int) -> None:
    items = [ScoreItem([5] * (length - 1), [5, 1], ()) for length in lengths]
    cut = list(slices(items, budget, 40))
    assert sorted(place for places in cut for place in places) == list(range(len(items)))
    for places in cut:
        padded = max(lengths[place] for place in places) * len(places)
        assert padded <= budget or len(places) == 1
        assert 2 * len(places) <= 40


def test_sampling_is_the_default_when_parameters_are_absent_altogether() -> None:
    assert GenerateRequest(inputs="x").given().wish().do_sample
    assert not GenerateRequest.model_validate({"inputs": "x", "parameters": {}}).given().wish().do_sample


def test_openai_wishes_are_greedy_when_the_temperature_is_zero() -> None:
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        ]
    }
    request = ChatRequest.model_validate(body | {"temperature": 0, "top_p": 0.5, "stop": "x"})
    wish = request.openai_wish([], 5, 0)
    assert (wish.do_sample, wish.temperature, wish.top_p, list(wish.stop)) == (False, None, None, ["x"])
    assert request.messages[0].plain() == {"role": "user", "content": "ab"}
    assert ChatRequest.model_validate(body).openai_wish([], 5, 0).do_sample
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})
