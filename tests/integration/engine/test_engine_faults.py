"""Bulk calls with a bad item among good ones: the bad one is told what is wrong, the others are answered."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from lorauter.lora.check import read_modules
from lorauter.lora.config import AdapterConfig
from lorauter.lora.store import AdapterStore
from lorauter.lora.write import write_adapter
from lorauter_engine.model.plan import Concatenations, plan_batch
from lorauter_engine.service.prepare import Wish

UNKNOWN = "sha256:" + "0" * 64
HUGE = 3e38
TARGETS = ("q_proj", "lm_head")


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def huge(pool, workspace) -> str:
    """The digest of an adapter of finite numbers that overflow on every input, in the output layer too."""
    modules = read_modules(pool.base)
    matrices = {
        name: (np.full((2, width), HUGE, np.float32), np.ones((out, 2), np.float32))
        for name, (width, out) in modules.items()
        if name.endswith(TARGETS)
    }
    write_adapter(workspace / "huge", AdapterConfig("test/tiny", 2, 2.0, False, TARGETS), matrices)
    return pool.store.admit(workspace / "huge", modules).digest


def item(adapter: str = "", prompt: str = "the cat", target: str = " sat") -> dict:
    return {"prompt": prompt, "target": target, "adapters": [{"id": adapter}] if adapter else []}


async def test_others_answer_as_they_would_alone_when_an_adapter_overflows(parts, pool, huge) -> None:
    prepare = parts.preparation
    others = ["", *pool.adapters.values()]
    sets = [[(digest, 1.0)] if digest else [] for digest in [huge, *others]]
    items = [prepare.score_item("a", " cat", chosen) for chosen in sets]
    scores = await parts.engine.score_each(items)
    assert scores[0].reason == "OUTPUT_NOT_FINITE"
    for score, alone in zip(scores[1:], items[1:], strict=True):
        assert score.logprob == pytest.approx((await parts.engine.score([alone]))[0].logprob, abs=1e-4)
    jobs = [prepare.job("a", Wish(max_new_tokens=5, adapters=chosen)) for chosen in sets]
    completed = await parts.engine.generate_each(jobs)
    assert completed[0].reason == "OUTPUT_NOT_FINITE"
    for each, alone in zip(completed[1:], jobs[1:], strict=True):
        assert each.finish.text == (await parts.engine.generate(alone)).finish.text


def test_zeros_cancel_only_adapters_of_small_numbers_when_a_batch_is_laid_out(parts, pool, huge) -> None:
    names = [pool.adapters["plain"], pool.adapters["head"], huge]
    plain, head, large = (parts.residency.acquire([(name, 1.0)]) for name in names)
    try:
        known = Concatenations(2**20)
        shared = plan_batch([plain, head] * 4, 1, known)
        apart = plan_batch([plain, head, large] * 4, 1, known)
        module = "model.layers.0.self_attn.q_proj"
        assert len(shared.parts[module]) == 1
        assert all(part.end == part.start + 1 for part in apart.parts[module])
    finally:
        for adapters in (plain, head, large):
            parts.residency.release(adapters)


@pytest.mark.parametrize("path", ["/score", "/generate_batch"])
def test_each_item_is_answered_or_told_its_fault_when_the_call_is_partial(http, pool, huge, path) -> None:
    items = [
        item(pool.adapters["plain"]),
        item(UNKNOWN),
        item("no digest"),
        item(huge),
        item(prompt="the " * 300),
        item(prompt=""),
        item(),
    ]
    body = {"items": items, "partial": True, "parameters": {"max_new_tokens": 5}}
    answers = http.post(path, json=body).json()["items"]
    assert [(answer.get("fault"), answer.get("reason")) for answer in answers] == [
        (None, None),
        ("adapter", "ADAPTER_UNKNOWN"),
        ("adapter", "ADAPTER_UNKNOWN"),
        ("output", "OUTPUT_NOT_FINITE"),
        ("item", "PROMPT_TOO_LONG"),
        ("item", "EMPTY_PROMPT"),
        (None, None),
    ]
    assert all(answer["error"] for answer in answers[1:6])
    alone = http.post(path, json=body | {"items": [items[0], items[6]]}).json()["items"]
    assert alone == [pytest.approx(answers[0]), pytest.approx(answers[6])]


@pytest.mark.parametrize("path", ["/score", "/generate_batch"])
def test_the_call_fails_when_one_item_does_and_it_is_not_partial(http, pool, huge, path) -> None:
    def answer(*items: dict) -> tuple[int, str]:
        response = http.post(path, json={"items": items, "parameters": {"max_new_tokens": 5}})
        return response.status_code, response.json()["reason"]

    assert answer(item(), item(UNKNOWN)) == (422, "ADAPTER_UNKNOWN")
    assert answer(item(), item(huge)) == (424, "OUTPUT_NOT_FINITE")
    assert answer(item(), item(prompt="")) == (422, "EMPTY_PROMPT")


def test_items_wait_alone_when_the_memory_holds_no_more_adapters(launch, pool) -> None:
    first, second = pool.adapters["plain"], pool.adapters["wide"]
    with (
        launch(LORAUTER_ADAPTER_COUNT="1") as address,
        httpx.Client(base_url=address, timeout=60, trust_env=False) as http,
    ):
        body = {"items": [item(first), item(second), item(first)], "partial": True}
        answers = http.post("/score", json=body).json()["items"]
        assert [answer.get("fault") for answer in answers] == [None, "busy", None]
        both = item() | {"adapters": [{"id": first}, {"id": second}]}
        full = http.post("/score", json={"items": [both], "partial": True})
        assert (full.status_code, full.json()["reason"]) == (429, "ADAPTERS_BUSY")
        assert http.post("/score", json={"items": [item(second)], "partial": True}).is_success


def test_broken_files_are_told_apart_when_they_are_in_the_store(http, pool, tiny_pools, tmp_path) -> None:
    made = tiny_pools(tmp_path).adapter("foreign", width=12)
    foreign = AdapterStore(pool.store.root).put(made)
    answers = http.post("/score", json={"items": [item(foreign), item()], "partial": True}).json()["items"]
    assert (answers[0]["fault"], answers[0]["reason"]) == ("adapter", "ADAPTER_SHAPE_MISMATCH")
    assert "fault" not in answers[1]
