"""Manifests that the worker proposes, publishes and writes, and what routers hear of them."""

from __future__ import annotations

import pytest
from sqlmodel import Session, col, select

from lorauter.lora.check import WEIGHTS_FILE, read_modules
from lorauter.lora.composites import CompositeStore
from lorauter.lora.store import AdapterStore
from lorauter.store import manifest_rows, tables, write
from lorauter_worker.service.manifests import RETRY_SECONDS, Manifests

POOL = "main"
ADAPTERS = {"sort-word": "sort-word-a", "reverse-code": "reverse-code-lite", "shift-word": "shift-word-a"}
"""The best adapter of each task. The first two have rank 4 and are written anew, the third has rank 8."""

ROOM = 10 * 1024**2


class Clock:
    """A clock that only goes when it is told to."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture
def pool(registry, demo_pool, store):
    """The demo's base with three tasks and their adapters, measured."""
    modules = {name: list(shape) for name, shape in read_modules(demo_pool / "base").items()}
    registry.add_pool(modules=modules, serving={"manifest_memory_bytes": ROOM})
    for number, (task, adapter) in enumerate(ADAPTERS.items()):
        registry.put_task(task, registry.questions(task))
        registry.add_version(adapter, store.put(demo_pool / "adapters" / adapter))
        registry.measure(task, "base", 0, 0.1)
        registry.measure(task, adapter, 1, 0.9 - number / 10)
    return registry


class Keeper:
    """The worker's part that keeps manifests, on a clock of the test's."""

    def __init__(self, registry, store, wakeups, settings) -> None:
        self.registry, self.store, self.wakeups, self.settings = registry, store, wakeups, settings
        self.clock = Clock()

    def make(self, **settings) -> Manifests:
        """A worker of its own, as after a restart."""
        return Manifests(
            engine=self.registry.engine,
            composites=CompositeStore(self.store),
            layouts=manifest_rows.Layouts(self.store),
            wakeups=self.wakeups,
            settings=self.settings.model_copy(update=settings),
            clock=self.clock,
        )

    def rows(self) -> list[tables.PoolManifest]:
        """All manifests, oldest first."""
        with Session(self.registry.engine) as session:
            table = tables.PoolManifest
            chosen = select(table).where(table.tenant == self.registry.tenant)
            return list(session.exec(chosen.order_by(col(table.create_time))))

    def publish(self, memory: int = ROOM) -> tables.PoolManifest:
        """Proposes and publishes, as a caller of the registry does."""
        registry = self.registry
        found = manifest_rows.draft(
            registry.engine, registry.tenant, POOL, manifest_rows.Layouts(self.store), memory
        )
        with write(registry.engine, registry.tenant) as tx:
            row = manifest_rows.put(tx, found)
            manifest_rows.publish(tx, row)
        return row

    def generation(self) -> int:
        return self.registry.scalar("SELECT value FROM generation WHERE tenant = :tenant")

    def serve(self, **serving) -> None:
        """Changes the pool's policy."""
        with write(self.registry.engine, self.registry.tenant) as tx:
            row = tx.session.get(tables.Pool, (self.registry.tenant, POOL))
            row.serving = {**row.serving, **serving}


@pytest.fixture
def keeper(pool, store, index_worker, settings) -> Keeper:
    return Keeper(pool, store, index_worker.wakeups, settings)


def recall(registry, adapter: str, state: str = "QUARANTINED") -> None:
    with write(registry.engine, registry.tenant) as tx:
        version = tx.session.get(tables.AdapterVersion, (registry.tenant, adapter, 1))
        version.state = state
        tx.owe("index", POOL)


def announced(index_worker) -> list[tuple[str, list[str]]]:
    """Digest and names of what a router would see."""
    index_worker.indexer.drain()
    return [(each.digest, [entry.name for entry in each.entries]) for each in index_worker.pool().manifests]


def test_routers_hear_of_a_manifest_once_its_composites_are_written(keeper, index_worker) -> None:
    row = keeper.publish()
    names = [entry["name"] for entry in row.entries]
    composites = [name for name in names if name.startswith("mix-")]
    assert (len(names), len(composites)) == (3, 2)
    assert announced(index_worker) == []
    manifests = keeper.make()
    assert manifests.composites.names() == []
    manifests.once()
    assert sorted(manifests.composites.names()) == sorted(composites)
    assert announced(index_worker) == [(row.digest, sorted(names))]
    (published,) = index_worker.pool().manifests
    for found in published.entries:
        if found.name in composites:
            composite = manifests.composites.get(found.name)
            assert (composite.members, composite.rank) == (found.members, found.rank)
        else:
            ((digest, weight),) = found.members
            assert (keeper.store.verify(digest).name, weight, found.rank) == (found.name, 1.0, 8)


def test_the_weights_of_an_entry_take_the_bytes_that_were_foreseen(keeper) -> None:
    row = keeper.publish()
    manifests = keeper.make()
    manifests.once()
    for entry in row.entries:
        size = (keeper.store.root / entry["name"] / WEIGHTS_FILE).stat().st_size
        assert entry["size_bytes"] < size < entry["size_bytes"] + 16 * 1024, "its header and nothing else"


def test_what_is_written_is_found_written_by_every_other_worker(keeper, index_worker) -> None:
    keeper.publish()
    keeper.make().once()
    after = keeper.generation()
    folders = {path: path.stat().st_mtime_ns for path in keeper.store.root.iterdir()}
    for _ in range(2):
        keeper.make().once()
    assert keeper.generation() == after
    assert {path: path.stat().st_mtime_ns for path in keeper.store.root.iterdir()} == folders


def test_a_worker_that_died_between_writing_and_saying_so_is_followed_by_the_next(
    keeper, index_worker, monkeypatch
) -> None:
    row = keeper.publish()
    dying = keeper.make()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorauter_worker.service.manifests.write", die)
    with pytest.raises(KeyboardInterrupt):
        dying.once()
    monkeypatch.undo()
    assert announced(index_worker) == []
    keeper.make().once()
    assert [digest for digest, _ in announced(index_worker)] == [row.digest]


def test_the_manifest_before_stays_announced_and_older_ones_go(keeper, index_worker) -> None:
    published = []
    for count in (1, 2, 3):
        size = max(entry["size_bytes"] for entry in keeper.publish().entries)
        published.append(keeper.publish(memory=count * size).digest)
        keeper.make().once()
    assert [digest for digest, _ in announced(index_worker)] == published[:0:-1]


def test_traffic_that_reorders_a_published_manifest_leaves_the_index_as_it_is(
    keeper, index_worker, make_index_worker
) -> None:
    before = [entry["name"] for entry in keeper.publish().entries]
    keeper.make().once()
    index_worker.indexer.drain()
    registry = keeper.registry
    traffic = '[{"task_id": "shift-word", "probability": 1}]'
    registry.execute(
        "INSERT INTO decision SELECT :tenant, md5(n::text), :pool, now(), '', 1, '', '', false, '', '', 0, "
        "0, 0, '[]', CAST(:tasks AS jsonb), '{}', '', '', '', '' FROM generate_series(1, 1000) AS n",
        tenant=registry.tenant,
        pool=POOL,
        tasks=traffic,
    )
    registry.execute("UPDATE pool_manifest SET create_time = create_time - interval '301 s'")
    keeper.make().once()
    (row,) = keeper.rows()
    assert [entry["name"] for entry in row.entries] != before
    assert make_index_worker().indexer.reconcile() == 0


def test_a_recall_takes_an_adapters_entries_out_of_what_routers_hear(keeper, index_worker) -> None:
    row = keeper.publish()
    keeper.make().once()
    of_adapter = {entry["members"][0]["adapter_id"]: entry["name"] for entry in row.entries}
    ((_, before),) = announced(index_worker)
    assert of_adapter["sort-word-a"] in before
    recall(keeper.registry, "sort-word-a")
    recall(keeper.registry, "shift-word-a", "DRAINING")
    ((digest, names),) = announced(index_worker)
    assert digest == row.digest
    assert set(before) - set(names) == {of_adapter["sort-word-a"]}, "pins of what drains are still served"


def test_a_recall_before_the_writing_leaves_the_rest_to_be_served(keeper, index_worker) -> None:
    row = keeper.publish()
    recall(keeper.registry, "sort-word-a")
    manifests = keeper.make()
    manifests.once()
    left = [entry["name"] for entry in row.entries if entry["members"][0]["adapter_id"] != "sort-word-a"]
    assert manifests.composites.names() == [name for name in left if name.startswith("mix-")]
    assert announced(index_worker) == [(row.digest, sorted(left))]


def test_a_composite_that_cannot_be_written_holds_up_nothing_but_its_manifest(keeper, index_worker) -> None:
    row = keeper.publish()
    digest = row.entries[0]["members"][0]["digest"]
    damaged = keeper.store.path(digest) / WEIGHTS_FILE
    sound = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    manifests = keeper.make()
    manifests.once()
    assert announced(index_worker) == []
    damaged.write_bytes(sound)
    manifests.once()
    assert announced(index_worker) == [], "it is not tried again at once"
    keeper.clock.now += RETRY_SECONDS
    manifests.once()
    assert [digest for digest, _ in announced(index_worker)] == [row.digest]


def test_a_proposal_is_made_when_it_is_time_and_published_by_callers_alone(keeper) -> None:
    before = keeper.generation()
    manifests = keeper.make()
    manifests.once()
    (row,) = keeper.rows()
    assert (len(row.entries), row.publish_time, row.memory_bytes) == (3, None, ROOM)
    assert (row.expected_share, keeper.generation()) == (1.0, before)
    manifests.once()
    keeper.make().once()
    assert [each.create_time for each in keeper.rows()] == [row.create_time], "by nobody before it is time"
    keeper.registry.execute("UPDATE pool_manifest SET create_time = create_time - interval '301 s'")
    manifests.once()
    keeper.clock.now += 301
    manifests.once()
    (again,) = keeper.rows()
    assert again.create_time > row.create_time


def test_no_proposal_is_made_for_a_pool_that_gives_no_memory_or_is_not_measured(keeper) -> None:
    keeper.serve(manifest_memory_bytes=0)
    keeper.make().once()
    keeper.serve(manifest_memory_bytes=ROOM)
    keeper.registry.execute("DELETE FROM affinity")
    keeper.make().once()
    assert keeper.rows() == []


def test_the_worker_publishes_where_the_policy_lets_it(keeper, index_worker) -> None:
    keeper.serve(manifest_policy="AUTO")
    keeper.make().once()
    (row,) = keeper.rows()
    assert row.publish_time is not None
    assert announced(index_worker) == []
    keeper.make().once()
    assert [digest for digest, _ in announced(index_worker)] == [row.digest]


def test_the_worker_publishes_for_enough_gain_and_not_too_soon(keeper, demo_pool) -> None:
    keeper.serve(manifest_policy="AUTO")
    registry = keeper.registry

    def in_force(**settings) -> str:
        registry.execute("UPDATE pool_manifest SET create_time = create_time - interval '301 s'")
        keeper.make(**settings).once()
        with Session(registry.engine) as session:
            return manifest_rows.in_force(session, registry.tenant, POOL).digest

    first = in_force()
    registry.add_version("new", keeper.store.put(demo_pool / "adapters" / "sort-code-a"))
    registry.measure("sort-word", "new", 1, 0.905)
    assert in_force(manifest_pause_seconds=0) == first, "it gains too little"
    registry.execute("UPDATE affinity SET shrunk_score = 1 WHERE adapter_id = 'new'")
    assert in_force() == first, "the last one was published a moment ago"
    second = in_force(manifest_pause_seconds=0)
    assert second != first
    recall(registry, "new")
    third = in_force(manifest_pause_seconds=0)
    assert third == first, "what there is without it"


def test_a_worker_process_does_all_of_it_by_itself(keeper, index_worker, run_worker) -> None:
    keeper.serve(manifest_policy="AUTO")

    def manifests() -> tuple[object, ...]:
        published = index_worker.index.published(keeper.registry.tenant)
        return index_worker.pool().manifests if published else ()

    with run_worker("index", LORAUTER_ADAPTER_STORE=str(keeper.store.root)):
        keeper.registry.eventually(manifests)
    (row,) = keeper.rows()
    names = [entry.name for entry in index_worker.pool().manifests[0].entries]
    assert names == sorted(entry["name"] for entry in row.entries)
