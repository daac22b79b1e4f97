"""Matchings on real PostgreSQL: what is asked for is stored and told, what cannot begin is refused."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from lorauter.errors import FailedPrecondition, InvalidArgument, LorauterError, NotFound
from lorauter.store import read, tables
from lorauter_registry.domain.adapter_requests import DisableAdapter, GetGeneration, RegisterAdapter
from lorauter_registry.domain.operation_requests import CancelOperation, ListOperations, StartMatching
from lorauter_registry.domain.requests import CreatePool, CreateTask, DeleteTask, DrainBackend, GetById
from lorauter_registry.domain.resources import MatchingProgress
from lorauter_registry.service import Registry


def work(registry: Registry) -> list[tuple[str, int]]:
    """Returns key and priority of the matchings that workers are owed."""
    outbox = tables.Outbox
    with read(registry.context.engine) as session:
        statement = select(outbox).where(outbox.topic == "matching").order_by(col(outbox.id))
        return [(row.key, row.priority) for row in session.exec(statement)]


def stored(registry: Registry, operation_id: str) -> dict[str, Any]:
    with read(registry.context.engine) as session:
        row = session.get(tables.Operation, ("default", operation_id))
        assert row is not None
        return row.request


def test_request_is_stored_as_it_was_asked(ready: Registry) -> None:
    operation = ready.start_matching(
        StartMatching(
            pool="p",
            task_ids=("t",),
            adapter_ids=("a",),
            remeasure=True,
            strategy="paper",
            max_evaluations=1_000,
            max_duration=timedelta(minutes=1.5),
            priority=-7,
        )
    )
    assert stored(ready, operation.id) == {
        "task_ids": ["t"],
        "adapter_ids": ["a"],
        "remeasure": True,
        "strategy": "paper",
        "max_evaluations": 1_000,
        "max_seconds": 90.0,
        "priority": -7,
    }
    assert work(ready) == [(operation.id, -7)]
    assert operation.matching == MatchingProgress(strategy="paper", max_evaluations=1_000)


def test_strategy_is_the_workers_when_none_is_named(ready: Registry) -> None:
    operation = ready.start_matching(StartMatching(pool="p"))
    asked = stored(ready, operation.id)
    assert (asked["strategy"], asked["max_evaluations"], asked["max_seconds"]) == ("", None, None)
    assert work(ready) == [(operation.id, 0)]


def test_progress_is_told_as_the_worker_wrote_it(ready: Registry) -> None:
    made = ready.start_matching(StartMatching(pool="p", max_evaluations=2**40))
    progress = {
        "strategy": "default",
        "task_count": 3,
        "done_task_count": 1,
        "alive": [9, 5],
        "quarantined_count": 2,
    }
    with ready.context.engine.begin() as connection:
        connection.execute(update(tables.Operation).values(state="RUNNING", progress=progress))
    told = ready.get_operation(GetById(id=made.id)).matching
    assert told == MatchingProgress.model_validate({**progress, "max_evaluations": 2**40})
    (listed,) = ready.list_operations(ListOperations(pool="p")).operations
    assert listed.matching == told


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"pool": "nil"}, NotFound, "POOL_NOT_FOUND"),
        ({"task_ids": ["t", "nil"]}, NotFound, "TASK_NOT_FOUND"),
        ({"adapter_ids": ["a", "nil"]}, NotFound, "ADAPTER_NOT_FOUND"),
        ({"adapter_ids": ["of-q"]}, NotFound, "ADAPTER_NOT_FOUND"),
        ({"strategy": "guess"}, InvalidArgument, "UNKNOWN_STRATEGY"),
        ({"max_evaluations": 0}, InvalidArgument, "ZERO_BUDGET"),
        ({"max_evaluations": -1}, InvalidArgument, "ZERO_BUDGET"),
        ({"max_duration": "0s"}, InvalidArgument, "ZERO_BUDGET"),
        ({"max_duration": timedelta(seconds=-1)}, InvalidArgument, "ZERO_BUDGET"),
        ({"task_ids": ["t", "empty"]}, FailedPrecondition, "TASK_WITHOUT_EXAMPLES"),
        ({"adapter_ids": ["a", "recalled"]}, FailedPrecondition, "NO_ACTIVE_VERSION"),
    ],
)
def test_nothing_begins_when_the_request_is_wrong(
    ready: Registry, tiny_pool: Any, fields: dict[str, Any], error: type[LorauterError], reason: str
) -> None:
    ready.create_pool(CreatePool(id="q", base_model=tiny_pool.base_model))
    ready.create_task(CreateTask(id="empty", pool="p", metric="exact_match"))
    for name, pool, seed in (("of-q", "q", 1), ("recalled", "p", 2)):
        path = str(tiny_pool.adapter(name, seed=seed))
        ready.register_adapter(RegisterAdapter(id=name, pool=pool, path=path))
    ready.disable_adapter(DisableAdapter(id="recalled", reason="bad"))
    before = ready.get_generation(GetGeneration())
    with pytest.raises(error) as caught:
        ready.start_matching(StartMatching.model_validate({"pool": "p", **fields}))
    assert caught.value.reason == reason
    assert ready.list_operations(ListOperations()).operations == ()
    assert (work(ready), ready.get_generation(GetGeneration())) == ([], before)


def reason_of_refusal(registry: Registry) -> str:
    with pytest.raises(FailedPrecondition) as caught:
        registry.start_matching(StartMatching(pool="p"))
    return caught.value.reason


def test_nothing_begins_when_no_backend_is_active(ready: Registry) -> None:
    ready.drain_backend(DrainBackend(id="e"))
    assert reason_of_refusal(ready) == "NO_EVALUATOR"


def test_nothing_begins_when_no_task_has_examples(ready: Registry) -> None:
    ready.create_task(CreateTask(id="empty", pool="p", metric="exact_match"))
    ready.start_matching(StartMatching(pool="p"))
    ready.delete_task(DeleteTask(id="t"))
    assert reason_of_refusal(ready) == "TASK_WITHOUT_EXAMPLES"


def test_nothing_begins_when_no_adapter_may_be_served(ready: Registry) -> None:
    ready.disable_adapter(DisableAdapter(id="a", reason="bad"))
    assert reason_of_refusal(ready) == "NO_ADAPTERS"


def test_nothing_begins_when_the_pool_has_no_adapters(registry: Registry) -> None:
    assert reason_of_refusal(registry) == "NO_ADAPTERS"


def test_pages_run_from_newest_to_oldest_when_operations_are_listed(ready: Registry) -> None:
    made = [ready.start_matching(StartMatching(pool="p")).id for _ in range(5)]
    seen: list[str] = []
    token = ""
    while len(seen) < 5:
        page = ready.list_operations(ListOperations(pool="p", page_size=2, page_token=token))
        seen += [one.id for one in page.operations]
        token = page.next_page_token
    assert seen == made[::-1]
    assert token == ""


def test_operation_is_cancelled_once(ready: Registry) -> None:
    request = StartMatching(pool="p", priority=5, request_id=str(uuid.uuid4()))
    operation = ready.start_matching(request)
    assert ready.start_matching(request) == operation
    cancelled = ready.cancel_operation(CancelOperation(id=operation.id))
    assert cancelled.cancel_requested
    before = ready.get_generation(GetGeneration())
    assert ready.cancel_operation(CancelOperation(id=operation.id)) == cancelled
    assert ready.get_generation(GetGeneration()) == before
    assert work(ready) == [(operation.id, 5)] * 2
