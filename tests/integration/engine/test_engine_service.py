"""Generations and scores in this process: independence, cancellation, bounds, residency."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from lorauter.errors import Exhausted, Internal, UnprocessableRequest
from lorauter.lora.store import AdapterStore
from lorauter_engine.domain.values import FinishReason, Job, Sampling
from lorauter_engine.model.network import Network
from lorauter_engine.model.plan import Concatenations, plan_batch
from lorauter_engine.service.prepare import Wish
from lorauter_engine.service.residency import Residency, normalise

PROMPTS = ["the cat sat", "a dog ran over the hills far away from home", "mat", "saw " * 30, "today and"]


def jobs(parts: Any, pool: Any, **wish: Any) -> list[Job]:
    names = [[], ["plain"], ["rslora", "patterned"], ["wide", "head"], ["plain", "rslora", "wide"]]
    return [
        parts.preparation.job(
            text, Wish(max_new_tokens=24, adapters=[(pool.adapters[n], 0.7) for n in chosen], **wish)
        )
        for text in PROMPTS
        for chosen in names
    ]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not in 20 s"
        await asyncio.sleep(0.01)


async def test_greedy_answers_are_the_same_when_generated_alone_or_together(parts, pool) -> None:
    wanted = jobs(parts, pool)
    together = await parts.engine.generate_all(wanted)
    for job, completed in zip(wanted, together, strict=True):
        alone = await parts.engine.generate(job)
        assert [s.token.id for s in alone.steps] == [s.token.id for s in completed.steps]
        assert alone.finish.text == completed.finish.text
    assert len({completed.finish.text for completed in together}) > 15


async def test_sampled_answers_are_the_same_when_the_seed_is(parts, pool) -> None:
    wanted = jobs(parts, pool, do_sample=True, seed=11, temperature=1.3, top_k=50, top_p=0.95, typical_p=0.9)
    together = await parts.engine.generate_all(wanted)
    alone = [await parts.engine.generate(job) for job in wanted]
    assert [c.finish.text for c in together] == [c.finish.text for c in alone]
    assert all(c.finish.seed == 11 for c in alone)
    other = [dataclasses.replace(job, sampling=dataclasses.replace(job.sampling, seed=12)) for job in wanted]
    assert [c.finish.text for c in await parts.engine.generate_all(other)] != [c.finish.text for c in alone]


async def test_scores_equal_a_plain_forward_pass(parts, pool, residencies) -> None:
    network = Network(pool.base, residencies.cpu)
    residency = residencies(network, pool.store)
    pairs = [(pool.adapters["rslora"], 0.5), (pool.adapters["wide"], -0.5)]
    sets = [[], pairs, [(pool.adapters["plain"], 1.0)]]
    items = [
        parts.preparation.score_item(text, target, chosen)
        for text in PROMPTS
        for target in (" the mat", "", " away from home today")
        for chosen in sets
    ]
    greedy = await parts.engine.generate(parts.preparation.job("the cat", Wish(max_new_tokens=6)))
    spoken = [step.token.id for step in greedy.steps]
    items.append(dataclasses.replace(items[0], prompt_ids=parts.codec.encode("the cat"), target_ids=spoken))
    scores = await parts.engine.score(items)
    for item, score in zip(items, scores, strict=True):
        ids = [*item.prompt_ids, *item.target_ids]
        plan = plan_batch([residency.acquire(item.adapters)], len(ids), Concatenations(2**20))
        logits = network.prefill([ids], plan, [range(len(item.prompt_ids) - 1, len(ids) - 1)], None)
        targets = torch.tensor(item.target_ids)
        logprob = torch.log_softmax(logits, -1).gather(-1, targets[:, None]).sum()
        assert score.logprob == pytest.approx(float(logprob), abs=1e-3)
        assert score.exact == bool((logits.argmax(-1) == targets).all())
        assert score.tokens == len(item.target_ids)
    assert scores[-1].exact
    assert not all(score.exact for score in scores)
    assert items[0].target_ids[-1] == parts.codec.eos_id


async def test_rows_are_freed_when_nobody_listens(parts, pool) -> None:
    wish = Wish(max_new_tokens=200, adapters=[(pool.adapters["plain"], 1.0)], do_sample=True, temperature=9.0)
    jobs = [
        dataclasses.replace(parts.preparation.job("the cat", dataclasses.replace(wish, seed=seed)))
        for seed in range(20)
    ]
    streams = [parts.engine.stream(job) for job in jobs[:6]]
    for stream in streams:
        assert (await anext(stream)).index == 1
    bulk = asyncio.create_task(parts.engine.generate_all(jobs[6:]))
    await until(lambda: parts.scheduler.running() > 0)
    for stream in streams:
        await stream.aclose()
    bulk.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bulk
    await until(lambda: parts.scheduler.running() == 0 and parts.residency.pinned() == 0)


async def test_what_waits_is_freed_when_nobody_wants_it_though_others_wait_before_it(
    engine_with, pool
) -> None:
    def wish(name: str, tokens: int) -> Wish:
        return Wish(
            max_new_tokens=tokens,
            adapters=[(pool.adapters[name], 1.0)],
            do_sample=True,
            seed=5,
            temperature=9.0,
        )

    with engine_with(max_rows=1, reserved_rows=0) as parts:
        prepare, engine = parts.preparation, parts.engine
        running = engine.stream(prepare.job("the cat", wish("plain", 250)))
        await anext(running)
        waiting = asyncio.create_task(engine.generate(prepare.job("a dog", wish("plain", 2))))
        unwanted = [
            asyncio.create_task(engine.generate(prepare.job("mat", wish("wide", 9)))),
            asyncio.create_task(
                engine.score([prepare.score_item("a", " cat", [(pool.adapters["head"], 1.0)])] * 300)
            ),
        ]
        await until(lambda: parts.residency.pinned() == 3)
        for task in unwanted:
            task.cancel()
        while parts.residency.pinned() > 1:
            assert (await anext(running)).finish is None, "freed only when the running row ended"
        assert not waiting.done()
        await running.aclose()
        assert (await waiting).finish.generated_tokens == 2
        assert parts.residency.pinned() == 0


async def test_a_row_fails_alone_when_its_numbers_overflow(parts, pool) -> None:
    good = parts.preparation.job("the cat sat", Wish(max_new_tokens=12))
    bad = parts.preparation.job(
        "the dog",
        Wish(max_new_tokens=12, adapters=[(pool.adapters["wide"], 1e38), (pool.adapters["plain"], 1e38)]),
    )
    expected = (await parts.engine.generate(good)).finish.text
    for _ in range(3):
        results = await asyncio.gather(
            *(parts.engine.generate(job) for job in (good, bad, good)), return_exceptions=True
        )
        assert isinstance(results[1], Internal)
        assert results[1].reason == "OUTPUT_NOT_FINITE"
        for result in (results[0], results[2]):
            assert not isinstance(result, BaseException)
            assert result.finish.text == expected
    with pytest.raises(Internal):
        await parts.engine.score([parts.preparation.score_item("the", " cat", bad.adapters)])
    assert parts.engine.is_alive()


async def test_work_is_refused_when_too_much_waits(engine_with, pool) -> None:
    with engine_with(max_rows=1, reserved_rows=0, max_waiting_rows=2, max_waiting_items=4) as parts:
        long = parts.preparation.job(
            "the cat", Wish(max_new_tokens=250, do_sample=True, seed=1, temperature=50.0)
        )
        calls = [asyncio.create_task(parts.engine.generate(long)) for _ in range(12)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Exhausted)]
        assert refused
        assert all(error.reason == "OVERLOADED" for error in refused)
        assert len(refused) + sum(hasattr(result, "finish") for result in results) == 12
        items = [parts.preparation.score_item("the", " cat", [(pool.adapters["plain"], 1.0)])] * 4
        scored = await asyncio.gather(*(parts.engine.score(items) for _ in range(8)), return_exceptions=True)
        assert any(isinstance(result, Exhausted) for result in scored)
        assert any(isinstance(result, list) for result in scored)
        await until(lambda: parts.residency.pinned() == 0)


async def test_requests_are_refused_when_too_many_are_under_way(parts) -> None:
    with ExitStack() as held:
        for _ in range(64):
            held.enter_context(parts.engine.admitted())
        with pytest.raises(Exhausted):
            held.enter_context(parts.engine.admitted())
    with parts.engine.admitted():
        pass


async def test_stop_sequences_are_found_when_they_cross_tokens(parts) -> None:
    free = (await parts.engine.generate(parts.preparation.job("the cat", Wish(max_new_tokens=30)))).finish
    stop = free.text[7:10]
    first = free.text.index(stop)
    wish = Wish(max_new_tokens=30, stop=["never there", stop])
    stopped = (await parts.engine.generate(parts.preparation.job("the cat", wish))).finish
    assert stopped.reason is FinishReason.STOP_SEQUENCE
    assert stopped.text == free.text[: first + len(stop)]
    assert stopped.clean_text == free.text[:first]
    quiet = dataclasses.replace(wish, is_quiet=True)
    assert (await parts.engine.generate(parts.preparation.job("the cat", quiet))).finish.text == stopped.text


async def test_penalties_and_prefill_and_top_tokens_when_asked_for(parts) -> None:
    wish = Wish(max_new_tokens=40, repetition_penalty=50.0, top_n_tokens=3, wants_prefill=True)
    completed = await parts.engine.generate(parts.preparation.job("the cat sat", wish))
    ids = [step.token.id for step in completed.steps]
    assert len(set(ids)) == len(ids)
    assert all(len(step.token.top) == 3 for step in completed.steps)
    assert all(step.token.top[0].id == step.token.id for step in completed.steps)
    prefill = completed.finish.prefill
    assert "".join(token.text for token in prefill) == "the cat sat"
    assert prefill[0].logprob is None
    assert all(token.logprob is not None and token.logprob < 0 for token in prefill[1:])
    frequent = parts.preparation.job("the cat sat", Wish(max_new_tokens=40, frequency_penalty=2.0))
    plain = parts.preparation.job("the cat sat", Wish(max_new_tokens=40))
    assert len({s.token.id for s in (await parts.engine.generate(frequent)).steps}) > len(
        {s.token.id for s in (await parts.engine.generate(plain)).steps}
    )


async def test_texts_are_whole_when_characters_take_several_tokens(parts) -> None:
    """Tokens are single bytes for letters that the tokenizer has never seen."""
    for seed in range(4):
        wish = Wish(max_new_tokens=60, do_sample=True, seed=seed, temperature=3.0)
        completed = await parts.engine.generate(parts.preparation.job("größer als 猫🐈", wish))
        pieces = "".join(step.token.text for step in completed.steps if not step.token.special)
        assert completed.finish.text == pieces
        ids = [step.token.id for step in completed.steps]
        assert parts.codec.decode(ids, True).startswith(completed.finish.text)


def test_residency_evicts_the_least_recent_and_never_what_is_in_use(pool, residencies) -> None:
    network = Network(pool.base, residencies.cpu)
    d = pool.adapters
    residency = residencies(network, pool.store, max_count=2)
    first = residency.acquire(((d["plain"], 1.0),))
    residency.release(residency.acquire(((d["rslora"], 1.0),)))
    residency.release(residency.acquire(((d["wide"], 1.0),)))
    assert residency.resident() == [d["plain"], d["wide"]]
    second = residency.acquire(((d["wide"], 1.0),))
    with pytest.raises(Exhausted) as caught:
        residency.acquire(((d["rslora"], 1.0),))
    assert caught.value.reason == "ADAPTERS_BUSY"
    residency.release(first)
    residency.release(second)
    assert residency.pinned() == 0
    with pytest.raises(UnprocessableRequest) as refused:
        residencies(network, pool.store, max_bytes=100).acquire(((d["plain"], 1.0),))
    assert refused.value.reason == "ADAPTER_TOO_LARGE"


def test_residency_refuses_what_is_unknown_or_changed_or_for_another_base(
    pool, gpt2_dir, residencies, tmp_path
) -> None:
    network = Network(pool.base, residencies.cpu)
    store = AdapterStore(tmp_path / "store")
    digest = store.put(pool.store.path(pool.adapters["plain"]))

    def reason(residency: Residency, name: str) -> str:
        with pytest.raises(UnprocessableRequest) as caught:
            residency.acquire(((name, 1.0),))
        return caught.value.reason

    assert reason(residencies(network, store), "sha256:" + "0" * 64) == "ADAPTER_UNKNOWN"
    assert reason(residencies(Network(gpt2_dir, residencies.cpu), store), digest) == "ADAPTER_SHAPE_MISMATCH"
    weights = store.path(digest) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    weights.chmod(0o644)
    data[-2] ^= 1
    weights.write_bytes(data)
    assert reason(residencies(network, store), digest) == "ADAPTER_CORRUPT"
    weights.write_bytes(data[:-5])
    residency = residencies(network, store)
    assert reason(residency, digest) == "ADAPTER_TRUNCATED"
    assert reason(residency, digest) == "ADAPTER_TRUNCATED"
    assert residency.pinned() == 0


def test_sets_are_normalised_when_named_twice_or_without_weight() -> None:
    a, b = "a" * 64, "b" * 64
    assert normalise([(b, 0.5), (f"sha256:{a}", 1.0), (a, 0.5), (b, -0.5)], 4) == ((f"sha256:{a}", 1.5),)
    for pairs, reason in [
        ([("x", 1.0)], "ADAPTER_UNKNOWN"),
        ([(a, 1.0), (b, 1.0)], "TOO_MANY_ADAPTERS"),
        ([(a, 1e308), (a, 1e308)], "INVALID_WEIGHT"),
    ]:
        with pytest.raises(UnprocessableRequest) as caught:
            normalise(pairs, 1)
        assert caught.value.reason == reason


def test_sampling_is_implied_when_a_filter_is_given() -> None:
    assert Sampling().is_plain
    assert not Sampling(do_sample=True).is_plain
    assert not Sampling(presence_penalty=0.1).is_plain
    assert math.isclose(Sampling().temperature, 1.0)
