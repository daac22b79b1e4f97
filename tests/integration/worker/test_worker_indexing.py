"""From committed rows in PostgreSQL to a snapshot in the index, with the real encoder."""

import numpy as np
import pytest

from lorauter.errors import NotFound
from lorauter.index import root_digest
from lorauter_worker.service import indexing, outbox
from lorauter_worker.service.publishing import record_published


def test_snapshot_holds_the_whole_registry_when_changes_are_drained(registry, index_worker):
    registry.add_pool(aliases=["alias"], untypical_policy="BASE")
    registry.add_backend("http://127.0.0.1:1")
    registry.put_task("sort", registry.questions("sorting letters"))
    registry.put_task("french", registry.questions("french translation"), prompt={"format": "CHAT"})
    last = registry.add_version("sorter", "sha256:" + "1" * 64)
    assert registry.task_state("sort") == "REGISTERED"
    index_worker.indexer.drain()

    snapshot = index_worker.snapshot()
    pool = index_worker.pool()
    assert (snapshot.generation, snapshot.tenant) == (last, registry.tenant)
    assert snapshot.encoder_digest == index_worker.encoder.digest
    assert (pool.base_model, pool.base_model_aliases, pool.untypical_policy) == (
        "test/base",
        ("alias",),
        "BASE",
    )
    assert [task.task_id for task in pool.tasks] == ["french", "sort"]
    assert [(a.adapter_id, a.version, a.routable) for a in pool.adapters] == [("sorter", 1, True)]
    assert [(b.backend_id, b.draining) for b in pool.backends] == [("engine", False)]
    wanted = index_worker.encoder.inner.encode([text for text, _ in registry.questions("sorting letters")])
    np.testing.assert_allclose(pool.tasks[1].centroid, wanted.mean(axis=0), atol=1e-6)
    assert pool.tasks[1].terms
    assert [row.topic for row in registry.outbox()] == ["matching"]
    assert registry.task_state("sort") == registry.task_state("french") == "EMBEDDED"
    assert registry.scalar("SELECT published FROM generation WHERE tenant = :tenant") == last
    stored = "SELECT digest FROM profile WHERE tenant = :tenant AND active"
    assert registry.scalar(stored) == pool.profile.digest


def test_one_projection_covers_many_changes_when_they_are_due_together(registry, index_worker):
    registry.add_pool()
    for number in range(10):
        registry.put_task(f"task-{number}", registry.questions(f"topic {number}", 2))
    index_worker.indexer.drain()
    assert registry.outbox() == []
    assert len(index_worker.pool().tasks) == 10


def test_nothing_is_encoded_twice_when_the_index_is_rebuilt(registry, make_index_worker):
    registry.add_pool()
    registry.put_task("sort", registry.questions("sorting letters"))
    first = make_index_worker()
    first.indexer.drain()
    assert first.encoder.texts == 4
    before = first.snapshot()
    first.index.clear(registry.tenant)
    again = make_index_worker()
    assert again.indexer.reconcile() == 1
    assert again.encoder.texts == 0
    assert again.snapshot().digest == before.digest


def test_examples_are_spaced_evenly_when_there_are_too_many(registry, index_worker, settings):
    registry.add_pool()
    registry.put_task("big", registry.questions("counting", settings.representation_examples + 10))
    index_worker.indexer.drain()
    assert index_worker.encoder.texts == settings.representation_examples
    assert index_worker.pool().tasks[0].example_count == settings.representation_examples + 10


def test_a_replaced_validation_set_starts_unmeasured_when_drained(registry, index_worker):
    registry.add_pool()
    registry.put_task("sort", registry.questions("sorting letters"))
    registry.measure("sort", "base", 0, 0.5)
    index_worker.indexer.drain()
    assert index_worker.pool().tasks[0].is_measured
    registry.put_task("sort", registry.questions("sorting numbers"))
    index_worker.indexer.drain()
    task = index_worker.pool().tasks[0]
    assert (task.version, task.is_measured) == (2, False)
    assert registry.task_state("sort") == "EMBEDDED"
    registry.delete_task("sort")
    index_worker.indexer.drain()
    assert index_worker.pool().tasks == ()


def test_nothing_of_a_deleted_task_is_used_when_its_id_comes_again(registry, index_worker):
    registry.add_pool()
    registry.put_task("sort", registry.questions("sorting letters"))
    registry.measure("sort", "base", 0, 0.5)
    index_worker.indexer.drain()
    before = index_worker.snapshot()
    stale = index_worker.indexer.projector.project(registry.tenant, float("inf"))
    registry.delete_task("sort")
    registry.put_task("sort", registry.questions("french translation"))
    with registry.engine.begin() as connection:
        record_published(connection, stale)
    assert registry.task_state("sort") == "REGISTERED"
    index_worker.indexer.drain()
    (old,), (new,) = before.pools["main"].tasks, index_worker.pool().tasks
    assert (new.version, new.is_measured) == (old.version, False)
    assert float(old.centroid @ new.centroid) < 0.7
    assert index_worker.pool().profile.digest != before.pools["main"].profile.digest
    assert registry.task_state("sort") == "EMBEDDED"


def test_measured_version_keeps_routing_when_a_newer_one_is_unmeasured(registry, index_worker):
    registry.add_pool()
    registry.put_task("sort", registry.questions("sorting letters"))
    registry.add_version("sorter", "sha256:" + "1" * 64)
    registry.measure("sort", "base", 0, 0.1)
    registry.measure("sort", "sorter", 1, 0.9)
    registry.add_version("sorter", "sha256:" + "2" * 64)
    index_worker.indexer.drain()
    assert [a.routable for a in index_worker.pool().adapters] == [True, False]
    registry.measure("sort", "sorter", 2, 0.7)
    index_worker.indexer.drain()
    assert [a.routable for a in index_worker.pool().adapters] == [False, True]
    affinities = index_worker.pool().tasks[0].affinities
    assert [(a.adapter_id, a.adapter_version) for a in affinities] == [("sorter", 2), ("base", 0)]


def test_unservable_versions_are_refused_with_a_reason_when_projected(registry, index_worker):
    registry.add_pool()
    for number, state in enumerate(["REGISTERED", "ACTIVE", "DRAINING", "RETIRED", "QUARANTINED"]):
        registry.add_version("a", f"sha256:{number}", state=state, successor="b" if number == 3 else "")
    index_worker.indexer.drain()
    held = [(a.version, a.routable, a.refusal, a.successor) for a in index_worker.pool().adapters]
    assert held == [
        (2, True, "", ""),
        (3, False, "", ""),
        (4, False, "ADAPTER_RETIRED", "b"),
        (5, False, "ADAPTER_QUARANTINED", ""),
    ]


def test_pinned_profile_is_used_when_an_operator_restored_it(registry, index_worker):
    registry.add_pool()
    registry.put_task("sort", registry.questions("sorting letters"))
    index_worker.indexer.drain()
    fitted = index_worker.pool().profile
    registry.execute(
        "INSERT INTO profile (tenant, pool, digest, generation, constants, figures, active) "
        "VALUES (:tenant, 'main', 'sha256:old', 1, '{\"temperature\": 0.5}', '{}', false)",
        tenant=registry.tenant,
    )
    registry.execute("UPDATE pool SET pinned_profile = 'sha256:old'")
    registry.put_task("french", registry.questions("french translation"))
    index_worker.indexer.drain()
    assert index_worker.pool().profile.constants == {"temperature": 0.5}
    registry.execute("UPDATE pool SET pinned_profile = ''")
    registry.delete_task("french")
    index_worker.indexer.drain()
    assert index_worker.pool().profile.constants == fitted.constants
    active = "SELECT array_agg(digest) FROM profile WHERE tenant = :tenant AND active"
    assert registry.scalar(active) == [index_worker.pool().profile.digest]


def test_work_stays_in_the_outbox_when_the_index_is_away(registry, make_index_worker, settings):
    registry.add_pool()
    worker = make_index_worker()
    away = type(worker.index)("http://127.0.0.1:9", timeout_seconds=1)
    object.__setattr__(worker.indexer, "index", away)
    worker.indexer.drain()
    (row,) = registry.outbox()
    assert row.last_error.startswith("INDEX_UNAVAILABLE")
    assert (row.lease_until, row.attempts) == (None, 1)
    with pytest.raises(NotFound):
        worker.snapshot()


def test_a_zombie_cannot_move_the_marker_back_when_it_resumes(registry, make_index_worker):
    registry.add_pool()
    zombie, heir = make_index_worker("zombie"), make_index_worker("heir")
    registry.put_task("sort", registry.questions("sorting letters"))
    claim = outbox.claim(registry.engine, "index", "zombie", 10)
    stale = zombie.indexer.projector.project(registry.tenant, float("inf"))

    registry.execute("UPDATE outbox SET lease_until = now() - interval '1 s', available_at = now()")
    registry.put_task("french", registry.questions("french translation"))
    heir.indexer.drain()
    assert registry.outbox() == []

    last = registry.put_task("third", registry.questions("third"))
    zombie.indexer._publish(claim, stale)
    assert len(heir.pool().tasks) == 2
    assert [row.generation for row in registry.outbox()] == [last]
    heir.indexer.drain()
    assert (heir.snapshot().generation, len(heir.pool().tasks)) == (last, 3)


def test_repairs_are_counted_only_when_the_index_differs_outside_of_a_change(registry, make_index_worker):
    registry.add_pool()
    registry.put_task("sort", registry.questions("sorting letters"))
    worker = make_index_worker()
    assert worker.indexer.reconcile() == 0
    worker.indexer.drain()
    assert worker.indexer.reconcile() == 0
    digest = worker.snapshot().digest
    worker.index._client.delete("tasks", [task_point(worker)])
    assert make_index_worker().indexer.reconcile() == 1
    assert worker.indexer.reconcile() == 0
    assert worker.snapshot().digest == digest == root_digest(worker.snapshot())


def task_point(worker) -> str:
    return worker.pool().tasks[0].address


def test_index_follows_when_the_registry_was_made_anew(registry, make_index_worker):
    worker = make_index_worker()
    registry.add_pool()
    for _ in range(4):
        registry.put_task("sort", registry.questions("sorting letters"))
    worker.indexer.drain()
    assert worker.snapshot().generation == 5
    registry.execute("TRUNCATE generation, pool, outbox CASCADE")
    registry.add_pool()
    fresh = make_index_worker()
    fresh.indexer.drain()
    assert (fresh.snapshot().generation, fresh.pool().tasks) == (1, ())
    assert fresh.indexer.reconcile() == 0
    assert registry.outbox() == []


@pytest.mark.parametrize("step", ["record_published", "start_matchings"])
def test_everything_is_done_again_when_a_worker_dies_after_publishing(
    registry, make_index_worker, monkeypatch, step
):
    registry.add_pool()
    registry.add_backend("http://127.0.0.1:1")
    registry.put_task("sort", registry.questions("sorting letters"))

    def die(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(indexing, step, die)
        with pytest.raises(SystemExit):
            make_index_worker("victim").indexer.drain()
    assert registry.operations() == []
    registry.execute("UPDATE outbox SET lease_until = now(), available_at = now()")
    make_index_worker("heir").indexer.drain()
    assert registry.task_state("sort") == "EMBEDDED"
    assert [row.state for row in registry.operations()] == ["PENDING"]
    assert [row.topic for row in registry.outbox()] == ["matching"]
