"""What gateways want is written once, refused with a reason, and taken back when an adapter is recalled."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from lorauter.compositions_wanted import (
    MOST_WRITTEN,
    WANTED,
    WRITTEN,
    Member,
    Refusal,
    Wanted,
    Written,
    dump_fate,
    key_of,
    read_fate,
)
from lorauter.errors import Unavailable
from lorauter.lora.check import read_modules
from lorauter.lora.composites import CompositeStore
from lorauter.lora.store import AdapterStore
from lorauter.store import create_engine, tables, write
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.valkey import valkey_url
from lorauter_worker.adapters.wanted_compositions import RedisWantedCompositions
from lorauter_worker.service.composing import MOST_AT_ONCE, REFUSED_SECONDS, Composer, has_its_share
from lorauter_worker.service.recalls import Recalls

POOL = "main"
NAMES = ("reverse-word-a", "sort-word-a", "dash-word-a")


class Gateway:
    """Asks for compositions of the demo's adapters as a gateway does, and hears what came of it."""

    def __init__(self, registry, url: str, store: AdapterStore, digests: dict[str, str]) -> None:
        self.registry = registry
        self.url = url
        self.redis = redis.Redis.from_url(url)
        self.store = CompositeStore(store)
        self.digests = digests
        self.now = 1000.0

    def wanted(self, *weights: float, **fields) -> Wanted:
        members = tuple(
            Member(name, 1, self.digests[name], weight) for name, weight in zip(NAMES, weights, strict=False)
        )
        given = {"tenant": self.registry.tenant, "pool": POOL, "backend_kind": "vllm", "max_rank": 64}
        return Wanted(**{**given, "shards": 1, "members": members, **fields})

    def ask(self, wanted: Wanted) -> str:
        entry: Any = wanted.entry()
        self.redis.xadd(WANTED, entry)
        return key_of(wanted)

    def fate(self, key: str) -> Written | Refusal | None:
        found: Any = self.redis.hget(WRITTEN, key)
        return None if found is None else read_fate(found)

    def asked(self, wanted: Wanted) -> Written | Refusal | None:
        """What became of a composition that is asked for now."""
        key = self.ask(wanted)
        self.composer().once()
        return self.fate(key)

    def refused(self, wanted: Wanted) -> str:
        """Why a composition is refused; nothing is written."""
        before = self.store.names()
        fate = self.asked(wanted)
        assert isinstance(fate, Refusal), fate
        assert fate.until == self.now + REFUSED_SECONDS
        assert fate.message
        assert self.store.names() == before
        return fate.reason

    def composer(self) -> Composer:
        wanted = RedisWantedCompositions(self.url)
        return Composer(self.registry.engine, self.store, wanted, lambda: self.now)

    def recalls(self) -> Recalls:
        return Recalls(self.registry.engine, RedisWantedCompositions(self.url), lambda: self.now)

    def set_state(self, name: str, state: str) -> None:
        self.registry.execute(
            "UPDATE adapter_version SET state = :state WHERE tenant = :tenant AND adapter_id = :id",
            state=state,
            tenant=self.registry.tenant,
            id=name,
        )


@pytest.fixture
def gateway(registry, redis_url, demo_pool, tmp_path) -> Iterator[Gateway]:
    """The demo's base and three of its adapters, registered, in a store of the test's own."""
    store = AdapterStore(tmp_path / "store")
    modules = {name: list(shape) for name, shape in read_modules(demo_pool / "base").items()}
    registry.add_pool(modules=modules, weights_digest="sha256:demo")
    digests = {name: store.put(demo_pool / "adapters" / name) for name in NAMES}
    for name, digest in digests.items():
        registry.add_version(name, digest)
    made = Gateway(registry, redis_url, store, digests)
    yield made
    made.redis.close()


def test_a_wanted_composition_is_written_and_said_once(gateway) -> None:
    wanted = gateway.wanted(0.5, 0.5)
    fate = gateway.asked(wanted)
    assert isinstance(fate, Written)
    assert fate.members == wanted.members
    composite = gateway.store.get(fate.name)
    assert composite.rank == fate.rank <= 64
    assert set(composite.members) == {(member.digest, 0.5) for member in wanted.members}
    record = json.loads((composite.folder / "composite.json").read_text())
    assert (record["server"], record["max_rank"], record["precision"]) == ("vllm", 64, "bfloat16")
    assert gateway.redis.xlen(WANTED) == 0
    written = composite.folder.stat().st_mtime_ns
    assert gateway.asked(dataclasses.replace(wanted, members=wanted.members[::-1])) == fate
    assert composite.folder.stat().st_mtime_ns == written


def test_servers_of_another_kind_or_rank_get_composites_of_their_own(gateway) -> None:
    wanted = gateway.wanted(0.5, 0.5)
    ranks = {"vllm": (64, 1), "tgi": (128, 2)}
    names = set()
    for kind, (max_rank, shards) in ranks.items():
        fate = gateway.asked(dataclasses.replace(wanted, backend_kind=kind, max_rank=max_rank, shards=shards))
        assert isinstance(fate, Written)
        names.add(fate.name)
        assert fate.rank % (8 * shards) == 0
    limited = gateway.asked(dataclasses.replace(wanted, backend_kind="tgi", max_rank=100))
    assert isinstance(limited, Written)
    assert limited.rank <= 64
    assert len(names | {limited.name}) == 3


def test_what_cannot_be_written_is_refused_with_its_reason(gateway) -> None:
    wanted = gateway.wanted(0.25, 0.5, 0.25)
    first = wanted.members[0]
    other = dataclasses.replace(wanted.members[1], digest="sha256:" + "0" * 64)
    rest = wanted.members[1:]
    assert gateway.refused(dataclasses.replace(wanted, max_rank=8)) == "COMPOSITE_RANK_TOO_LARGE"
    assert gateway.refused(dataclasses.replace(wanted, max_rank=48)) == "INVALID_FIELD"
    tgi = dataclasses.replace(wanted, backend_kind="tgi", max_rank=8, shards=2)
    assert gateway.refused(tgi) == "INVALID_FIELD"
    assert gateway.refused(dataclasses.replace(wanted, pool="none")) == "POOL_NOT_FOUND"
    assert gateway.refused(dataclasses.replace(wanted, tenant="nobody")) == "POOL_NOT_FOUND"
    unknown = dataclasses.replace(first, adapter_id="none")
    assert gateway.refused(dataclasses.replace(wanted, members=(unknown, *rest))) == "UNKNOWN_ADAPTER"
    assert gateway.refused(dataclasses.replace(wanted, members=(first, other))) == "ADAPTER_CONTENT_DIFFERS"
    zero = dataclasses.replace(first, weight=0.0)
    assert gateway.refused(dataclasses.replace(wanted, members=(zero,))) == "NO_ADAPTERS"


def test_an_adapter_of_another_pool_is_refused(gateway, registry) -> None:
    with write(registry.engine, registry.tenant) as tx:
        own = {"tenant": registry.tenant, "generation": tx.generation}
        tx.session.add(tables.Pool(id="other", base_model="other/base", **own))
    assert gateway.refused(gateway.wanted(0.5, 0.5, pool="other")) == "ADAPTER_BASE_MISMATCH"


def test_a_store_that_cannot_be_written_is_a_reason(gateway) -> None:
    locks = gateway.store.root / ".locks"
    locks.write_text("in the way")
    assert gateway.refused(gateway.wanted(0.5, 0.5)) == "ADAPTER_STORE_UNAVAILABLE"
    shutil.rmtree(gateway.store.root / gateway.digests[NAMES[0]].removeprefix("sha256:"))
    locks.unlink()
    assert gateway.refused(gateway.wanted(0.4, 0.6)) == "ADAPTER_NOT_STORED"


def test_a_refusal_counts_until_it_is_over(gateway) -> None:
    wanted = gateway.wanted(0.5, 0.5)
    gateway.set_state(NAMES[1], "RETIRED")
    assert gateway.refused(wanted) == "ADAPTER_RETIRED"
    gateway.set_state(NAMES[1], "ACTIVE")
    assert isinstance(gateway.asked(wanted), Refusal)
    gateway.recalls().once()
    assert isinstance(gateway.fate(key_of(wanted)), Refusal)
    gateway.now += REFUSED_SECONDS
    gateway.recalls().once()
    assert gateway.fate(key_of(wanted)) is None
    assert isinstance(gateway.asked(wanted), Written)


@pytest.mark.parametrize("state", ["DRAINING", "RETIRED", "QUARANTINED"])
def test_a_recall_takes_the_composite_back(gateway, state) -> None:
    both, alone = gateway.wanted(0.5, 0.5), gateway.wanted(0.3)
    keys = [gateway.ask(both), gateway.ask(alone)]
    gateway.composer().once()
    name = gateway.fate(keys[0]).name
    gateway.recalls().once()
    assert isinstance(gateway.fate(keys[0]), Written)
    gateway.set_state(NAMES[1], state)
    gateway.recalls().once()
    assert gateway.fate(keys[0]) is None
    assert isinstance(gateway.fate(keys[1]), Written)
    assert name in gateway.store.names()
    assert gateway.refused(both) == f"ADAPTER_{state}"


def test_a_recall_while_a_composite_is_written_keeps_it_back(gateway, monkeypatch) -> None:
    ensure = CompositeStore.ensure

    def recalled_meanwhile(store, recipe):
        gateway.set_state(NAMES[0], "QUARANTINED")
        return ensure(store, recipe)

    monkeypatch.setattr(CompositeStore, "ensure", recalled_meanwhile)
    fate = gateway.asked(gateway.wanted(0.5, 0.5))
    assert isinstance(fate, Refusal)
    assert fate.reason == "ADAPTER_QUARANTINED"


def test_a_composite_that_nobody_has_registered_is_taken_back(gateway) -> None:
    """Who can write to Redis can not have adapters served that the registry does not have as active."""
    forged = Member("sort-word-a", 1, "sha256:" + "f" * 64, 1.0)
    written = {
        key_of(gateway.wanted(0.5)): Written("mix-0123456789abcdef", 8, (forged,)),
        "no key at all": Written("mix-0123456789abcdef", 8, gateway.wanted(1.0).members),
    }
    for key, fate in written.items():
        gateway.redis.hset(WRITTEN, key, dump_fate(fate))
    gateway.recalls().once()
    assert gateway.redis.hlen(WRITTEN) == 0


def test_hostile_entries_are_skipped(gateway) -> None:
    good = gateway.wanted(0.5, 0.5)
    for fields in ({"x": "y"}, good.entry() | {"pool": "../.."}, {b"\xff": b"\xff"}, {"members": "[" * 9999}):
        gateway.redis.xadd(WANTED, fields)
    gateway.redis.hset(WRITTEN, b"\xff\xfe", b"\xff")
    gateway.redis.hset(WRITTEN, "acme/main/vllm/64/1/x", b'{"name": "../../etc", "rank": 8, "members": []}')
    assert isinstance(gateway.asked(good), Written)
    gateway.recalls().once()
    assert gateway.redis.hkeys(WRITTEN) == [key_of(good).encode()]


def test_work_and_what_is_said_of_it_are_bounded(gateway) -> None:
    for number in range(MOST_AT_ONCE + 1):
        gateway.ask(gateway.wanted(0.5, pool=f"none-{number}"))
    gateway.composer().once()
    assert gateway.redis.xlen(WANTED) == 1
    gateway.redis.delete(WANTED, WRITTEN)
    written = dump_fate(Written("mix-0123456789abcdef", 8, gateway.wanted(1.0).members))
    own = gateway.registry.tenant
    gateway.redis.hset(WRITTEN, mapping={f"{own}/{number}": written for number in range(MOST_WRITTEN)})
    assert gateway.refused(gateway.wanted(0.5, 0.5)) == "TOO_MANY_COMPOSITIONS"
    gateway.redis.hset(WRITTEN, mapping={f"{own}/more-{number}": written for number in range(MOST_WRITTEN)})
    assert gateway.asked(gateway.wanted(0.3, 0.7)) is None


def test_a_tenant_that_has_many_compositions_written_takes_nobody_elses_place(gateway) -> None:
    written = dump_fate(Written("mix-0123456789abcdef", 8, gateway.wanted(1.0).members))
    gateway.redis.hset(WRITTEN, mapping={f"other/{number}": written for number in range(2 * MOST_WRITTEN)})
    assert isinstance(gateway.asked(gateway.wanted(0.5, 0.5)), Written)
    assert has_its_share(["other"] * 2 * MOST_WRITTEN, "other", MOST_WRITTEN)
    assert not has_its_share(["other"] * MOST_WRITTEN, "own", MOST_WRITTEN)
    assert has_its_share(["other", "own"] * MOST_WRITTEN, "own", MOST_WRITTEN)


def test_of_several_workers_one_takes_an_entry(gateway) -> None:
    for weight in (0.1, 0.2, 0.3):
        gateway.ask(gateway.wanted(weight))
    workers = [RedisWantedCompositions(gateway.url) for _ in range(4)]
    taken = [worker.take() for worker in workers]
    assert [entry is None for entry in taken] == [False, False, False, True]
    assert len({entry[0] for entry in taken if entry}) == 3


def test_without_redis_or_postgres_nothing_is_lost_but_time(gateway, registry) -> None:
    away = RedisWantedCompositions(valkey_url(free_port(), 0))
    with pytest.raises(Unavailable) as caught:
        Composer(registry.engine, gateway.store, away).once()
    assert caught.value.reason == "REDIS_UNAVAILABLE"
    Recalls(registry.engine, away).once()
    nowhere = create_engine(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    wanted = gateway.wanted(0.5, 0.5)
    key = gateway.ask(wanted)
    with pytest.raises(Unavailable) as caught:
        Composer(nowhere, gateway.store, RedisWantedCompositions(gateway.url)).once()
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert gateway.fate(key) is None
    assert isinstance(gateway.asked(wanted), Written)


def test_a_worker_of_index_with_the_store_composes_and_recalls(gateway, run_worker) -> None:
    wanted = gateway.wanted(0.5, 0.25, 0.25)
    key = gateway.ask(wanted)
    with run_worker("index", LORAUTER_ADAPTER_STORE=str(gateway.store.root)) as worker:
        gateway.registry.eventually(lambda: gateway.fate(key))
        fate = gateway.fate(key)
        assert isinstance(fate, Written)
        assert gateway.store.get(fate.name).rank == fate.rank
        assert worker.metric('lorauter_wanted_compositions_total{result="written"}') == 1
        gateway.set_state(NAMES[2], "QUARANTINED")
        gateway.registry.eventually(lambda: gateway.fate(key) is None)
        again = gateway.ask(wanted)
        gateway.registry.eventually(lambda: isinstance(gateway.fate(again), Refusal))


def test_a_worker_without_the_store_leaves_what_is_wanted(gateway, run_worker, log) -> None:
    key = gateway.ask(gateway.wanted(0.5, 0.5))
    with run_worker("index"):
        gateway.registry.eventually(lambda: "worker.composing.off" in log.read_text())
        assert gateway.fate(key) is None
    assert gateway.redis.xlen(WANTED) == 1
