"""Profiles over the worker's life: constants that stay, churn, rollback, and how many are kept."""

from __future__ import annotations

import pytest
from sqlmodel import Session, col, select

from lorauter.routing.posterior import UNFITTED
from lorauter.store import tables
from lorauter_worker.service.publishing import KEPT_PROFILES

KEPT = (*UNFITTED, "temperature")
TOPICS = ("sorting letters", "naming capital cities", "adding long numbers", "translating into French")


def mixed(registry, number: int) -> list[tuple[str, str]]:
    """Examples of a topic and some that its neighbour has too: no constants tell all of them apart."""
    own, other = TOPICS[number], TOPICS[number - 1]
    return [*registry.questions(own, 7), *registry.questions(other, 3)]


def profiles(registry) -> list[tables.Profile]:
    """All of the pool's, newest first."""
    with Session(registry.engine) as session:
        chosen = select(tables.Profile).where(tables.Profile.tenant == registry.tenant)
        return list(session.exec(chosen.order_by(col(tables.Profile.create_time).desc())))


def active(registry) -> tables.Profile:
    (found,) = [row for row in profiles(registry) if row.active]
    return found


def kept(constants: dict[str, float]) -> dict[str, float]:
    return {name: constants[name] for name in KEPT}


def set_constants(registry, **changed: float) -> None:
    """Writes other constants into the active profile, as if they had been fitted to other examples."""
    with Session(registry.engine) as session:
        row = session.merge(active(registry))
        row.constants = {**row.constants, **changed}
        session.commit()


@pytest.fixture
def learnt(registry, index_worker):
    """A worker that published three tasks."""
    registry.add_pool()
    for number in range(3):
        registry.put_task(f"task-{number}", mixed(registry, number))
    index_worker.indexer.drain()
    return index_worker


def test_constants_in_use_stay_when_new_ones_are_not_better(registry, learnt) -> None:
    before = active(registry)
    registry.put_task("task-2", mixed(registry, 2)[:-1])
    learnt.indexer.drain()
    after = active(registry)
    assert after.digest == learnt.pool().profile.digest != before.digest
    assert after.figures["kept"] == 1
    assert kept(after.constants) == kept(before.constants)
    assert after.figures["log_loss"] == after.figures["log_loss_before"]
    assert learnt.snapshot().generation == after.generation > before.generation


def test_constants_are_replaced_when_those_in_use_are_clearly_worse(registry, learnt) -> None:
    set_constants(registry, dense_weight=0.0, lexical_weight=0.01)
    registry.put_task("task-3", mixed(registry, 3))
    learnt.indexer.drain()
    figures = active(registry).figures
    assert figures["kept"] == 0
    assert figures["log_loss"] == figures["log_loss_fitted"] < figures["log_loss_before"]
    assert active(registry).constants["dense_weight"] > 0


def test_another_worker_publishes_the_same_when_it_starts_from_the_registry(
    registry, learnt, make_index_worker
) -> None:
    registry.put_task("task-3", mixed(registry, 3))
    learnt.indexer.drain()
    other = make_index_worker()
    assert other.indexer.reconcile() == 0
    assert learnt.indexer.reconcile() == 0
    marker = learnt.index.published(registry.tenant)
    registry.touch()
    other.indexer.drain()
    assert learnt.pool().profile == other.pool().profile
    assert active(registry).digest == other.pool().profile.digest
    assert other.index.published(registry.tenant) != marker


def test_workers_agree_again_when_one_chose_from_other_constants(registry, learnt, make_index_worker) -> None:
    other = make_index_worker()
    assert other.indexer.reconcile() == 0
    first = active(registry)
    moved = {**first.constants, "dense_weight": round(first.constants["dense_weight"] * 1.001, 6)}
    registry.execute("UPDATE profile SET active = false WHERE tenant = :tenant", tenant=registry.tenant)
    with Session(registry.engine) as session:
        session.add(
            tables.Profile(
                tenant=registry.tenant,
                pool=first.pool,
                digest="sha256:of another worker",
                generation=first.generation,
                constants=moved,
                active=True,
            )
        )
        session.commit()
    learnt.indexer.reconcile()
    other.indexer.reconcile()
    chosen = active(registry)
    assert chosen.constants["dense_weight"] in (moved["dense_weight"], first.constants["dense_weight"])
    assert learnt.pool().profile.digest == chosen.digest
    assert (learnt.indexer.reconcile(), other.indexer.reconcile()) == (0, 0)


def test_churn_is_reported_once_there_is_something_to_compare_with(
    registry, learnt, make_index_worker
) -> None:
    assert "churn" not in active(registry).figures
    registry.add_version("sorter", "sha256:" + "1" * 64)
    for adapter, version, score in (("base", 0, 0.1), ("sorter", 1, 0.9)):
        registry.measure("task-0", adapter, version, score)
    learnt.indexer.drain()
    registry.put_task("task-3", mixed(registry, 3))
    learnt.indexer.drain()
    assert active(registry).figures["churn"] == 0.0
    registry.put_task("task-3", mixed(registry, 3)[:-1])
    make_index_worker().indexer.drain()
    assert "churn" not in active(registry).figures


def test_restored_profile_serves_todays_tasks_and_is_the_start_of_the_next_fit(registry, learnt) -> None:
    older = active(registry)
    set_constants(registry, dense_weight=1.0)
    registry.put_task("task-3", mixed(registry, 3))
    learnt.indexer.drain()
    registry.execute("UPDATE pool SET pinned_profile = :digest", digest=older.digest)
    generation = registry.touch()
    learnt.indexer.drain()
    assert learnt.snapshot().generation == generation
    assert learnt.pool().profile.digest == older.digest
    assert learnt.pool().profile.constants["dense_weight"] == 1.0
    assert {task.task_id for task in learnt.pool().tasks} >= {"task-3"}
    registry.execute("UPDATE pool SET pinned_profile = ''")
    registry.touch()
    learnt.indexer.drain()
    assert learnt.pool().profile.digest != older.digest
    assert active(registry).digest == learnt.pool().profile.digest


def test_newest_profiles_are_kept_beside_the_pinned_and_the_active_one(registry, learnt) -> None:
    oldest = active(registry).digest
    with Session(registry.engine) as session:
        for number in range(KEPT_PROFILES + 5):
            row = tables.Profile(
                tenant=registry.tenant, pool="main", digest=f"sha256:{number:03}", generation=1
            )
            session.add(row)
            session.flush()
        session.commit()
    registry.execute("UPDATE pool SET pinned_profile = 'sha256:001'")
    registry.touch()
    learnt.indexer.drain()
    newest = {f"sha256:{number:03}" for number in range(5, KEPT_PROFILES + 5)}
    assert {row.digest for row in profiles(registry)} == {"sha256:001", *newest}
    registry.execute("UPDATE pool SET pinned_profile = ''")
    registry.touch()
    learnt.indexer.drain()
    assert {row.digest for row in profiles(registry)} == {oldest, *newest} - {"sha256:005"}
