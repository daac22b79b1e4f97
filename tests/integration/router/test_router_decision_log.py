"""What the router records of its decisions, and that recording neither delays nor fails a route."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY

from lorauter.decisions import RecordedDecision, stream_of
from lorauter.routing.replaying import unpack_terms, unpack_vector
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.process import running
from lorauter_suite.embedded.valkey import valkey_process, valkey_url

QUERY = "what is 8 plus 5"
SECRET = "hunter2 xyzzy"
STREAM = stream_of("default")


@pytest.fixture
def stream(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("lorauter_router_decision_log_total", {"result": result}) or 0.0


def entries(stream: redis.Redis) -> list[dict[bytes, bytes]]:
    found: Any = stream.xrange(STREAM)
    return [fields for _, fields in found]


async def test_decision_is_recorded_with_what_a_replay_needs(lab, redis_url, stream) -> None:
    async with lab.router_on(lab.index(7), redis_url=redis_url) as router:
        response = await router.route(
            query=QUERY, tags=[], exclude_tasks=["mood", SECRET], exclude_adapters=["critic", SECRET]
        )
        await lab.eventually(lambda: len(entries(stream)) == 1)
    (entry,) = entries(stream)
    kept = RecordedDecision.read(entry)
    assert (kept.id, kept.pool, kept.strategy) == (response.decision_id, "p", "default")
    assert (kept.generation, kept.profile_digest) == (response.generation, response.profile_digest)
    assert (kept.encoder_digest, kept.action) == (lab.encoder.digest, "ADAPTERS")
    assert (kept.best_adapter, kept.best_version) == ("abacus", 1)
    assert [(one.adapter_id, one.weight) for one in kept.adapters] == [
        (one.adapter_id, one.weight) for one in response.adapters
    ]
    assert [one.task_id for one in kept.tasks] == [one.task_id for one in response.tasks]
    assert kept.text_digest == hashlib.blake2b(QUERY.encode(), digest_size=16).hexdigest()
    assert kept.options.exclude_tasks == ("mood",)
    assert kept.options.exclude_adapters == ("critic",)
    vector = lab.encoder.encode([QUERY])[0]
    assert float(unpack_vector(kept.vector) @ vector) == pytest.approx(1, abs=1e-3)
    assert len(unpack_terms(kept.terms).ids) > 0


@pytest.mark.parametrize(
    ("detail", "fields"),
    [("outcome", {b"decision"}), ("features", {b"decision", b"vector", b"terms"})],
)
async def test_no_text_is_recorded_unless_it_is_asked_for(lab, redis_url, stream, detail, fields) -> None:
    async with lab.router_on(lab.index(7), redis_url=redis_url, decision_detail=detail) as router:
        await router.route(query=f"{QUERY} {SECRET}", tags=[SECRET])
        await router.route(query=f"{QUERY} {SECRET}", exclude_tasks=[SECRET])
        await lab.eventually(lambda: len(entries(stream)) == 2)
    raw = b"".join(data for entry in entries(stream) for data in entry.values())
    assert set(entries(stream)[1]) == fields
    for word in (*QUERY.split(), *SECRET.split()):
        assert len(word) < 4 or word.encode() not in raw
    kept = [RecordedDecision.read(entry) for entry in entries(stream)]
    assert kept[0].options.tags == ("",)
    assert all(one.text == "" for one in kept)
    if detail == "features":
        heard = set(unpack_terms(kept[1].terms).ids.tolist())
        assert heard
        assert heard <= lab.words()


async def test_text_is_recorded_up_to_its_limit_when_it_is_asked_for(lab, redis_url, stream) -> None:
    async with lab.router_on(lab.index(7), redis_url=redis_url, decision_detail="text") as router:
        await router.route(query=QUERY)
        await router.route(query="é" * 40_000)
        await lab.eventually(lambda: len(entries(stream)) == 2)
    texts = [RecordedDecision.read(entry).text for entry in entries(stream)]
    assert texts == [QUERY, "é" * (16 * 1024)]


async def test_nothing_is_recorded_when_it_is_off(lab, redis_url, stream) -> None:
    async with lab.router_on(lab.index(7), redis_url=redis_url, decision_detail="off") as router:
        await router.route()
    async with lab.router_on(lab.index(7)) as router:
        await router.route()
    assert not stream.exists(STREAM)


async def test_stream_is_bounded_when_no_worker_reads_it(lab, redis_url, stream) -> None:
    async with lab.router_on(lab.index(7), redis_url=redis_url, decision_stream=1) as router:
        before = counted("recorded")
        for _ in range(300):
            await router.route()
        await lab.eventually(lambda: counted("recorded") == before + 300)
    assert 0 < stream.xlen(STREAM) < 200


async def test_routes_go_on_and_nothing_is_lost_when_redis_dies_and_comes_back(lab, tmp_path: Path) -> None:
    port = free_port()
    recorded, dropped = counted("recorded"), counted("dropped")
    async with lab.router_on(lab.index(7), redis_url=valkey_url(port)) as router:
        with running(valkey_process(tmp_path / "first", port)):
            first = await router.route()
            await lab.eventually(lambda: counted("recorded") == recorded + 1)
        away = [await router.route() for _ in range(50)]
        assert router.follower.lacking() == ""
        with running(valkey_process(tmp_path / "second", port)):
            last = await router.route()
            await lab.eventually(lambda: counted("recorded") == recorded + 52)
            with redis.Redis.from_url(valkey_url(port)) as client:
                kept = [RecordedDecision.read(entry).id for entry in entries(client)]
    assert kept == [one.decision_id for one in (*away, last)]
    assert first.decision_id not in kept
    assert counted("dropped") == dropped


async def test_decisions_are_dropped_and_counted_when_too_many_wait_for_redis(lab) -> None:
    dropped = counted("dropped")
    nowhere = valkey_url(free_port())
    async with lab.router_on(lab.index(7), redis_url=nowhere, decision_queue=5) as router:
        answered = [await router.route() for _ in range(12)]
        assert len({one.decision_id for one in answered}) == 12
        assert counted("dropped") - dropped == 7
    assert counted("dropped") - dropped == 12
