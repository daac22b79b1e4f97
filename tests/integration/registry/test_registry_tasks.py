"""Tasks and validation sets on real PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
from sqlmodel import col, func, select

from lorauter.errors import Conflict, InvalidArgument, NotFound
from lorauter.store import read, tables
from lorauter_registry.domain.examples import ExampleSet
from lorauter_registry.domain.requests import (
    DeleteTask,
    GetById,
    ListValidationExamples,
    PutValidationSet,
    UpdateTask,
)
from lorauter_registry.domain.resources import Task
from lorauter_registry.service import Registry


def examples(*inputs: str) -> ExampleSet:
    made = ExampleSet(64 * 1024 * 1024)
    made.extend((one, f"answer to {one}") for one in inputs)
    return made


def put(registry: Registry, *inputs: str, **fields: Any) -> Task:
    request = PutValidationSet.model_validate({"task_id": "t", **fields})
    return registry.put_validation_set(request, examples(*inputs))


def listed(registry: Registry, version: int = 0, page_size: int = 0) -> list[str]:
    inputs: list[str] = []
    token = ""
    while True:
        request = ListValidationExamples(task_id="t", version=version, page_size=page_size, page_token=token)
        page = registry.list_validation_examples(request)
        inputs += [example.input for example in page.examples]
        token = page.next_page_token
        if not token:
            return inputs


def versions(registry: Registry) -> list[tables.TaskVersion]:
    version = tables.TaskVersion
    with read(registry.context.engine) as session:
        return list(session.exec(select(version).order_by(col(version.version))).all())


def test_set_is_replaced_as_a_whole_and_old_versions_stay(registry: Registry) -> None:
    assert listed(registry) == []
    first = put(registry, "a", "b")
    assert (first.version, first.example_count, first.state) == (1, 2, "REGISTERED")
    second = put(registry, "c", "d", "e")
    assert (second.version, second.example_count) == (2, 3)
    assert listed(registry) == ["c", "d", "e"]
    assert listed(registry, version=1, page_size=1) == ["a", "b"]
    with pytest.raises(NotFound):
        listed(registry, version=3)


def test_same_set_makes_no_new_version(registry: Registry) -> None:
    first = put(registry, "a", "b")
    assert put(registry, "a", "b") == first
    assert put(registry, "b", "a").version == 2
    assert put(registry, "a", "b").version == 3


def test_set_is_left_alone_when_the_put_fails(registry: Registry) -> None:
    first = put(registry, "a")
    with pytest.raises(Conflict):
        put(registry, "b", etag="old")
    with pytest.raises(InvalidArgument):
        put(registry)
    with pytest.raises(NotFound):
        put(registry, "b", task_id="nil")
    assert registry.get_task(GetById(id="t")) == first
    assert listed(registry) == ["a"]


def test_put_is_done_once_when_repeated_with_its_request_id(registry: Registry) -> None:
    first = put(registry, "a", request_id="r")
    put(registry, "b")
    assert put(registry, "a", request_id="r") == first
    assert listed(registry) == ["b"]
    with pytest.raises(Exception, match="request_id") as caught:
        put(registry, "c", request_id="r")
    assert caught.value.reason == "REQUEST_ID_REUSED"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": {"format": "CHAT", "system": "Be brief."}},
        {"generation_settings": {"max_new_tokens": 7}},
        {"generation_settings": {"stop": ["\n"]}},
    ],
)
def test_new_version_reuses_the_examples_when_the_request_changes(
    registry: Registry, change: dict[str, Any]
) -> None:
    put(registry, "a", "b")
    changed = registry.update_task(UpdateTask.model_validate({"id": "t", **change}))
    assert (changed.version, changed.example_count, changed.state) == (2, 2, "REGISTERED")
    assert listed(registry) == ["a", "b"]
    old, new = versions(registry)
    assert old.prompt_digest != new.prompt_digest
    assert (new.examples_version, new.examples_digest) == (1, old.examples_digest)
    assert registry.update_task(UpdateTask.model_validate({"id": "t", **change})).version == 2


def test_version_stays_when_only_words_change(registry: Registry) -> None:
    put(registry, "a")
    changed = registry.update_task(UpdateTask(id="t", description="x", tags=("y",), replace_tags=True))
    assert (changed.version, changed.description, changed.tags) == (1, "x", ("y",))
    assert registry.update_task(UpdateTask(id="t", tags=("z",))).tags == ("y",)


def test_everything_goes_when_a_task_is_deleted(registry: Registry) -> None:
    put(registry, "a")
    registry.delete_task(DeleteTask(id="t"))
    with read(registry.context.engine) as session:
        for table in (tables.Task, tables.TaskVersion, tables.ValidationExample, tables.Affinity):
            assert session.exec(select(func.count()).select_from(table)).one() == 0
    with pytest.raises(NotFound):
        registry.get_task(GetById(id="t"))


def test_hundred_thousand_examples_are_stored_in_their_order(registry: Registry) -> None:
    many = ExampleSet(64 * 1024 * 1024)
    many.extend((f"question {number}\t\\N\n", f"{number}") for number in range(100_000))
    stored = registry.put_validation_set(PutValidationSet(task_id="t"), many)
    assert stored.example_count == 100_000
    request = ListValidationExamples(task_id="t", page_size=10_000)
    page = registry.list_validation_examples(request)
    assert [(one.input, one.target) for one in page.examples] == many.rows[:1_000]
    with read(registry.context.engine) as session:
        example = tables.ValidationExample
        last = session.exec(select(example).order_by(col(example.position).desc()).limit(1)).one()
    assert (last.input, last.position) == ("question 99999\t\\N\n", 99_999)


def test_pages_stay_on_their_version_when_the_set_is_replaced_meanwhile(registry: Registry) -> None:
    put(registry, "a", "b", "c")
    page = registry.list_validation_examples(ListValidationExamples(task_id="t", page_size=2))
    put(registry, "x")
    request = ListValidationExamples(task_id="t", page_size=2, page_token=page.next_page_token)
    rest = registry.list_validation_examples(request)
    assert ([one.input for one in rest.examples], rest.version, rest.next_page_token) == (["c"], 1, "")


def test_page_is_cut_when_examples_are_long(registry: Registry) -> None:
    long = ExampleSet(64 * 1024 * 1024)
    long.extend((f"{number}" + "é" * 65_000, "y") for number in range(30))
    registry.put_validation_set(PutValidationSet(task_id="t"), long)
    page = registry.list_validation_examples(ListValidationExamples(task_id="t"))
    assert 0 < len(page.examples) < 30
    assert len(listed(registry)) == 30
