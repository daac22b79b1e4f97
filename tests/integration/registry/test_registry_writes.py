"""Writes on real PostgreSQL: idempotent, guarded by etags, one generation and outbox row each."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col, func, select

from lorauter.access import acting, calling, open_caller
from lorauter.errors import AlreadyExists, Conflict, InvalidArgument, NotFound
from lorauter.identifiers import decode_generation
from lorauter.store import read, tables
from lorauter_registry.domain.adapter_requests import GetGeneration
from lorauter_registry.domain.operation_requests import StartMatching
from lorauter_registry.domain.requests import (
    CreateTask,
    DeleteTask,
    DrainBackend,
    GetById,
    ListTasks,
    RegisterBackend,
    UpdatePool,
    UpdateTask,
)
from lorauter_registry.service import Registry


def task(task_id: str, **fields: Any) -> CreateTask:
    return CreateTask.model_validate({"id": task_id, "pool": "p", "metric": "exact_match", **fields})


def callers(count: int) -> ThreadPoolExecutor:
    """Returns threads on which the registry may be called."""
    return ThreadPoolExecutor(count, initializer=calling, initargs=(open_caller("default"),))


def generation(registry: Registry) -> int:
    return decode_generation(registry.get_generation(GetGeneration()).generation, registry.tenant)


def outbox(registry: Registry) -> list[tables.Outbox]:
    with read(registry.context.engine) as session:
        return list(session.exec(select(tables.Outbox).order_by(col(tables.Outbox.id))).all())


def test_write_is_done_once_when_repeated_with_its_request_id(registry: Registry) -> None:
    first = registry.create_task(task("u", request_id="r"))
    registry.update_task(UpdateTask(id="u", description="changed since"))
    before = generation(registry)
    assert registry.create_task(task("u", request_id="r")) == first
    assert generation(registry) == before


def test_request_id_is_refused_when_it_was_used_for_something_else(registry: Registry) -> None:
    registry.create_task(task("u", request_id="r"))
    with pytest.raises(AlreadyExists) as caught:
        registry.create_task(task("v", request_id="r"))
    assert caught.value.reason == "REQUEST_ID_REUSED"
    # Another call may have the same id: a caller counts for each call by itself.
    registry.update_task(UpdateTask(id="u", description="x", request_id="r"))


def test_failed_write_is_not_remembered(registry: Registry) -> None:
    with pytest.raises(NotFound):
        registry.create_task(task("u", pool="nil", request_id="r"))
    assert registry.create_task(task("u", request_id="r")).id == "u"


def test_write_is_done_once_when_duplicates_run_together(registry: Registry) -> None:
    barrier = threading.Barrier(10)

    def create(_: int) -> Any:
        barrier.wait(20)
        return registry.create_task(task("u", request_id="r"))

    before = generation(registry)
    with callers(10) as threads:
        answers = list(threads.map(create, range(10)))
    assert all(answer == answers[0] for answer in answers)
    assert generation(registry) == before + 1
    assert [row.generation for row in outbox(registry)] == list(range(1, before + 2))


def test_request_ids_are_forgotten_after_a_day(registry: Registry) -> None:
    write = tables.IdempotentWrite
    registry.create_task(task("u", request_id="old"))
    with registry.context.engine.begin() as connection:
        connection.execute(update(write).values(create_time=write.create_time - timedelta(hours=25)))
    with pytest.raises(AlreadyExists) as caught:
        registry.create_task(task("u", request_id="old"))
    assert caught.value.reason == "TASK_EXISTS"
    registry.create_task(task("v", request_id="new"))
    with read(registry.context.engine) as session:
        assert session.exec(select(write.request_id)).all() == ["new"]


def test_change_is_refused_when_somebody_else_was_first(registry: Registry) -> None:
    read_by_both = registry.get_task(GetById(id="t"))
    first = registry.update_task(UpdateTask(id="t", etag=read_by_both.etag, description="mine"))
    assert first.etag != read_by_both.etag
    with pytest.raises(Conflict) as caught:
        registry.update_task(UpdateTask(id="t", etag=read_by_both.etag, description="yours"))
    assert caught.value.metadata["etag"] == first.etag
    with pytest.raises(Conflict):
        registry.delete_task(DeleteTask(id="t", etag=read_by_both.etag))
    assert registry.get_task(GetById(id="t")).description == "mine"


def test_one_of_many_changes_wins_when_all_read_the_same_etag(registry: Registry) -> None:
    etag = registry.get_task(GetById(id="t")).etag

    def change(number: int) -> bool:
        try:
            registry.update_task(UpdateTask(id="t", etag=etag, description=str(number)))
        except Conflict:
            return False
        return True

    with callers(8) as threads:
        assert sum(threads.map(change, range(8))) == 1


def test_etag_is_another_one_when_a_task_is_created_anew(registry: Registry) -> None:
    before = registry.get_task(GetById(id="t"))
    registry.delete_task(DeleteTask(id="t"))
    assert registry.create_task(task("t")).etag != before.etag


def test_generations_are_gapless_and_owed_when_20_threads_write(registry: Registry) -> None:
    """Every accepted write has a generation of its own, and exactly one index row of the outbox."""
    barrier = threading.Barrier(20)
    accepted: list[str] = []

    def work(worker: int) -> None:
        barrier.wait(20)
        name = f"t{worker}"
        accepted.append(registry.create_task(task(name)).generation)
        for step in range(5):
            request = {"id": name if step % 2 else "t", "tags": [str(step)], "replace_tags": True}
            accepted.append(registry.update_task(UpdateTask.model_validate(request)).generation)
        with pytest.raises(AlreadyExists):
            registry.create_task(task(name))
        with pytest.raises(InvalidArgument):
            registry.create_task(task(f"{name}-x", metric="no_such_metric"))
        accepted.append(registry.delete_task(DeleteTask(id=name)).generation)

    before = generation(registry)
    with callers(20) as threads:
        list(threads.map(work, range(20)))
    numbers = sorted(decode_generation(one, "default") for one in accepted)
    assert numbers == list(range(before + 1, before + 1 + 20 * 7))
    rows = outbox(registry)
    assert [(row.topic, row.key, row.generation) for row in rows] == [
        ("index", "p", number) for number in range(1, before + 1 + 20 * 7)
    ]


def test_workers_are_woken_after_accepted_writes_only(ready: Registry) -> None:
    heard: Any = ready.context.wakeups
    heard.topics.clear()
    ready.start_matching(StartMatching(pool="p"))
    with pytest.raises(NotFound):
        ready.update_task(UpdateTask(id="nil"))
    assert heard.topics == ["index", "matching"]


def test_nothing_changes_when_a_write_finds_its_effect_there(registry: Registry) -> None:
    backend = {"id": "b", "pool": "p", "kind": "ENGINE", "url": "http://localhost:1", "request_id": "r"}
    first = registry.register_backend(RegisterBackend.model_validate(backend))
    before = (generation(registry), len(outbox(registry)))
    again = RegisterBackend.model_validate({**backend, "request_id": "s"})
    assert registry.register_backend(again) == first
    assert registry.register_backend(again) == first
    assert (generation(registry), len(outbox(registry))) == before
    drained = registry.drain_backend(DrainBackend(id="b"))
    assert registry.drain_backend(DrainBackend(id="b")) == drained
    assert generation(registry) == before[0] + 1
    assert (
        registry.register_backend(RegisterBackend.model_validate({**backend, "request_id": ""})).state
        == "ACTIVE"
    )


def test_pool_of_another_tenant_is_not_seen(registry: Registry) -> None:
    with acting(open_caller("other")):
        assert registry.list_tasks(ListTasks()).tasks == ()
        for call, name in ((registry.get_pool, "p"), (registry.get_task, "t")):
            with pytest.raises(NotFound):
                call(GetById(id=name))
        with pytest.raises(NotFound):
            registry.update_pool(UpdatePool(id="p", description="mine"))
        assert generation(registry) == 0
    assert registry.get_pool(GetById(id="p")).description == ""


def test_pages_hold_everything_once_while_tasks_come_and_go(registry: Registry) -> None:
    for number in range(25):
        registry.create_task(task(f"n{number:02}"))
    seen: list[str] = []
    token = ""
    while True:
        page = registry.list_tasks(ListTasks(page_size=7, page_token=token))
        assert len(page.tasks) <= 7
        seen += [one.id for one in page.tasks]
        if len(seen) == 7:
            registry.delete_task(DeleteTask(id="n00"))
            registry.create_task(task("n00x"))
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"n{number:02}" for number in range(25)] + ["t"]
    assert len(registry.list_tasks(ListTasks(page_size=10**9)).tasks) == 26


def test_page_is_cut_before_it_outgrows_a_message(registry: Registry) -> None:
    for number in range(150):
        registry.create_task(
            task(f"n{number}", description="é" * 4_096, tags=[f"{n:063}" for n in range(32)])
        )
    page = registry.list_tasks(ListTasks(page_size=1000))
    assert 0 < len(page.tasks) < 150
    assert len(page.model_dump_json().encode()) < 4 * 1024 * 1024
    assert page.next_page_token


def test_outbox_is_empty_for_writes_that_failed(registry: Registry) -> None:
    before = len(outbox(registry))
    with pytest.raises(AlreadyExists):
        registry.create_task(task("t"))
    with read(registry.context.engine) as session:
        assert session.exec(select(func.count()).select_from(tables.Task)).one() == 1
    assert len(outbox(registry)) == before
