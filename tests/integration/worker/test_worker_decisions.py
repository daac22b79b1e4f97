"""Decisions from the routers' streams to the table, and out of it again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest

from lorauter.access import PUBLIC_TENANT
from lorauter.decisions import (
    GROUP,
    RecordedArm,
    RecordedDecision,
    RecordedOptions,
    RecordedTask,
    stream_of,
)
from lorauter.identifiers import encode_generation
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.valkey import valkey_url
from lorauter_worker.adapters.decision_stream import RedisDecisionStream
from lorauter_worker.service.decisions import BATCH, DecisionKeeper
from lorauter_worker.telemetry import DECISIONS

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


def decision(**fields: Any) -> RecordedDecision:
    given = {
        "id": uuid.uuid4().hex,
        "time_ms": int(NOW.timestamp() * 1000),
        "pool_tenant": PUBLIC_TENANT,
        "pool": "main",
        "strategy": "default",
        "generation": encode_generation(7, PUBLIC_TENANT),
        "profile_digest": "sha256:p",
        "encoder_digest": "sha256:e",
        "stale": False,
        "action": "ADAPTERS",
        "best_adapter": "a",
        "best_version": 1,
        "expected_utility": 0.9,
        "typicality": 0.5,
        "adapters": (RecordedArm(adapter_id="a", version=1, weight=1.0),),
        "tasks": (RecordedTask(task_id="t", similarity=0.5, probability=1.0),),
        "options": RecordedOptions(max_adapters=3),
        "text_digest": "0" * 32,
        "vector": b"\x00\x3c",
        "terms": b"",
        **fields,
    }
    return RecordedDecision.model_validate(given)


class Streams:
    """The stream of the registry's tenant, and keepers of it."""

    def __init__(self, registry: Any, url: str) -> None:
        self.registry = registry
        self.url = url
        self.key = stream_of(registry.tenant)
        self.redis = redis.Redis.from_url(url)
        registry.touch()

    def keeper(self, claim_seconds: float = 60, days: float = 7) -> DecisionKeeper:
        stream = RedisDecisionStream(self.url, claim_seconds)
        return DecisionKeeper(self.registry.engine, stream, days, lambda: NOW)

    def add(self, *made: RecordedDecision) -> list[str]:
        for one in made:
            entry: Any = one.entry()
            self.redis.xadd(self.key, entry)
        return [one.id for one in made]

    def stored(self) -> list[str]:
        statement = "SELECT array_agg(id ORDER BY time, id) FROM decision WHERE tenant = :tenant"
        return self.registry.scalar(statement) or []


@pytest.fixture
def streams(registry, redis_url) -> Iterator[Streams]:
    made = Streams(registry, redis_url)
    yield made
    made.redis.close()


def counted(result: str) -> float:
    registry = CollectorRegistry()
    registry.register(DECISIONS)
    name = f'lorauter_recorded_decisions_total{{result="{result}"}} '
    lines = generate_latest(registry).decode().splitlines()
    return float(next((line.removeprefix(name) for line in lines if line.startswith(name)), 0))


def test_decisions_are_stored_once_and_leave_the_stream(streams) -> None:
    made = [decision(text="what is it", terms=b"\x01\x00\x00\x00\x00\x00\x80\x3f") for _ in range(BATCH + 3)]
    ids = streams.add(*made, made[0])
    keeper = streams.keeper()
    keeper.once()
    assert streams.stored() == sorted(ids[:-1])
    assert streams.redis.xlen(streams.key) == 0
    assert streams.redis.xpending(streams.key, GROUP)["pending"] == 0
    again = decision()
    streams.add(again, made[1])
    keeper.once()
    assert len(streams.stored()) == BATCH + 4
    row = streams.registry.scalar("SELECT row_to_json(d) FROM decision d WHERE text <> '' LIMIT 1")
    assert (row["pool"], row["generation"], row["best_adapter"]) == ("main", 7, "a")
    assert row["adapters"] == [{"adapter_id": "a", "version": 1, "weight": 1.0}]
    assert row["options"]["max_adapters"] == 3
    assert (row["vector"], row["text"]) == ("\\x003c", "what is it")


def test_entries_of_a_dead_consumer_are_stored_by_another(streams) -> None:
    ids = streams.add(decision(), decision())
    RedisDecisionStream(streams.url).take(streams.registry.tenant, BATCH)
    streams.keeper(claim_seconds=600).once()
    assert streams.stored() == []
    streams.keeper(claim_seconds=0).once()
    assert streams.stored() == sorted(ids)
    assert streams.redis.xlen(streams.key) == 0


@pytest.mark.parametrize(
    "poison",
    [
        {b"anything": b"else"},
        {b"decision": b"{"},
        {b"decision": b'{"id": 1}'},
        {b"decision": decision().model_dump_json().encode(), b"text": b"\xff"},
        {b"decision": json.dumps({**json.loads(decision().model_dump_json()), "pool": "a\0b"}).encode()},
        {
            b"decision": json.dumps(
                {**json.loads(decision().model_dump_json()), "best_version": 9**20}
            ).encode()
        },
        decision(pool_tenant="somebody").entry(),
        decision(generation=encode_generation(7, "somebody")).entry(),
    ],
    ids=[
        *("no decision", "no json", "no fields", "no text", "nul", "too large"),
        *("another tenant's pool", "another tenant's generation"),
    ],
)
def test_poison_is_dropped_and_counted_and_holds_nobody_up(streams, poison: dict[bytes, bytes]) -> None:
    before = counted("dropped")
    first = streams.add(decision())
    streams.redis.xadd(streams.key, poison)
    ids = [*first, *streams.add(decision())]
    keeper = streams.keeper(claim_seconds=0)
    keeper.once()
    assert streams.stored() == sorted(ids)
    assert streams.redis.xlen(streams.key) == 0
    assert counted("dropped") == before + 1
    keeper.once()
    assert counted("dropped") == before + 1


def test_decisions_in_a_public_pool_are_the_tenants_that_asked(streams, registry) -> None:
    """Also where that has nothing of its own but a key."""
    registry.execute(
        "INSERT INTO api_key (id, tenant, description, scopes, digest, any_tenant, requests_per_minute, "
        "tokens_per_minute, successor) VALUES ('1', 'guest', '', '{invoke}', '', false, 0, 0, '')"
    )
    registry.execute("INSERT INTO generation (tenant, value) VALUES ('public', 7)")
    made = decision(text="what the guest asked")
    streams.redis.xadd(stream_of("guest"), made.entry())
    streams.keeper().once()
    rows = registry.scalar("SELECT json_agg(d) FROM decision d")
    assert [(row["tenant"], row["pool_tenant"], row["generation"], row["text"]) for row in rows] == [
        ("guest", "public", 7, "what the guest asked")
    ]


def test_decisions_are_forgotten_after_their_days(streams) -> None:
    def at(**age: float) -> int:
        return int((NOW - timedelta(**age)).timestamp() * 1000)

    old = [decision(time_ms=at(days=7, minutes=number)) for number in range(1, 4)]
    young = decision(time_ms=at(days=6, hours=23))
    streams.add(*old, young)
    streams.keeper(days=8).once()
    assert len(streams.stored()) == 4
    streams.keeper(days=7).once()
    assert streams.stored() == [young.id]
    streams.keeper(days=0.01).once()
    assert streams.stored() == []


def test_what_is_old_is_forgotten_and_nothing_fails_when_redis_is_away(streams) -> None:
    streams.add(decision(time_ms=0))
    streams.keeper(days=100_000).once()
    assert len(streams.stored()) == 1
    streams.url = valkey_url(free_port())
    streams.keeper(days=7).once()
    assert streams.stored() == []


def test_what_was_taken_comes_again_when_the_database_was_away(streams, registry) -> None:
    ids = streams.add(decision())
    registry.execute("ALTER TABLE decision RENAME TO elsewhere")
    with pytest.raises(Exception, match="decision"):
        streams.keeper().once()
    registry.execute("ALTER TABLE elsewhere RENAME TO decision")
    streams.keeper(claim_seconds=0).once()
    assert streams.stored() == ids


def test_worker_stores_decisions_beside_its_work(streams, run_worker) -> None:
    ids = streams.add(decision(time_ms=int(datetime.now(UTC).timestamp() * 1000)))
    with run_worker("matching") as process:
        streams.registry.eventually(lambda: streams.stored() == ids)
        name = 'lorauter_recorded_decisions_total{result="stored"}'
        streams.registry.eventually(lambda: process.metric(name) == 1)
