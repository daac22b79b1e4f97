"""Affinities with their evidence on real PostgreSQL: told on the lift card, exported, and taken back."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from lorauter.access import acting, open_caller
from lorauter.errors import LorauterError
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.store import tables
from lorauter_registry.api.convert import checked, to_message, to_value
from lorauter_registry.domain.adapter_requests import DisableAdapter, RegisterAdapter, SetAdapterAlias
from lorauter_registry.domain.affinity_csv import read_affinities, write_affinities, write_header
from lorauter_registry.domain.affinity_requests import AffinityInput, ImportAffinities, ListAffinities
from lorauter_registry.domain.answers import AffinityList
from lorauter_registry.domain.examples import ExampleSet
from lorauter_registry.domain.requests import (
    CreatePool,
    CreateTask,
    GetById,
    ListTasks,
    PutValidationSet,
    UpdateTask,
)
from lorauter_registry.domain.resources import Affinity, Lift
from lorauter_registry.service import Registry

MEASURED = datetime(2026, 5, 1, 12, 30, 0, 123_456, tzinfo=UTC)


def fill(registry: Registry, files: Any) -> None:
    """Gives task ``t`` an example, and pool ``p`` adapters ``a`` of two versions, ``b`` and ``c``."""
    for name, seed in (("a", 0), ("a", 1), ("b", 2), ("c", 3)):
        path = str(files.adapter(f"{name}{seed}", seed=seed))
        registry.register_adapter(RegisterAdapter(id=name, pool="p", path=path))
    examples = ExampleSet(1_000)
    examples.add("question", "answer")
    registry.put_validation_set(PutValidationSet(task_id="t"), examples)


@pytest.fixture
def measured(registry: Registry, tiny_pool: Any) -> Registry:
    """A registry in which nothing is measured yet."""
    fill(registry, tiny_pool)
    return registry


@pytest.fixture
def fresh(registry: Registry, tiny_pool: Any) -> Registry:
    """The registry as another tenant sees it, with the same pool, task and adapters."""
    fresh: Any = OfTenant(registry, "fresh")
    base = {"id": "p", "base_model": tiny_pool.base_model, "base_path": str(tiny_pool.base())}
    fresh.create_pool(CreatePool.model_validate(base))
    fresh.create_task(CreateTask(id="t", pool="p", metric="exact_match"))
    fill(fresh, tiny_pool)
    return fresh


class OfTenant:
    """A registry whose calls are those of a tenant."""

    def __init__(self, registry: Registry, tenant: str) -> None:
        self.context = registry.context
        self._registry = registry
        self.tenant = tenant

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            with acting(open_caller(self.tenant)):
                return getattr(self._registry, name)(*arguments)

        return call


def measure(registry: Registry, adapter_id: str, version: int, **evidence: Any) -> None:
    """Writes an affinity as the worker does."""
    (known,) = registry.list_tasks(ListTasks()).tasks
    with registry.context.engine.begin() as connection:
        digest = (
            connection.execute(tables.TaskVersion.metadata.tables["task_version"].select().limit(1))
            .one()
            .prompt_digest
        )
        row = tables.Affinity(
            tenant=registry.tenant,
            task_id="t",
            task_version=known.version,
            adapter_id=adapter_id,
            adapter_version=version,
            metric="exact_match",
            prompt_digest=digest,
            measure_time=MEASURED,
            **{"score": 0.5, "count": 32, "standard_error": 0.1, **evidence},
        )
        connection.execute(insert(tables.Affinity).values(**row.model_dump()))


def measure_all(registry: Registry) -> None:
    """Only ``a`` is eligible: ``b`` scores more but was not judged, ``c`` fell by its likelihood alone."""
    judged = {"judged_count": 16, "likelihood": -1 / 3}
    measure(registry, "base", 0, score=0.4, shrunk_score=0.4, eligible=False, judged_score=0.41, **judged)
    first = {**judged, "place": 1}
    measure(registry, "a", 1, shrunk_score=0.99, judged_score=0.9, lift=0.5, lift_error=0.1, **first)
    measure(registry, "a", 2, shrunk_score=0.7, judged_score=0.78, lift=0.37, lift_error=0.11, **first)
    measure(registry, "b", 1, score=0.9, shrunk_score=0.4, eligible=False, round=2)
    fell = {"count": 0, "score": 0.0, "standard_error": 0.5, "likelihood": -2.5, "round": 1}
    measure(registry, "c", 1, shrunk_score=0.3, eligible=False, **fell)


def listed(registry: Registry) -> AffinityList:
    return registry.list_affinities(ListAffinities(pool="p"))


def test_lift_card_is_of_the_adapter_that_routing_uses(measured: Registry) -> None:
    measure_all(measured)
    task = measured.get_task(GetById(id="t"))
    assert (task.base_score, task.best_score, task.best_adapter) == (0.4, 0.5, "a")
    lift = Lift(
        adapter_id="a",
        adapter_version=2,
        base_score=0.41,
        score=0.78,
        standard_error=0.1 * 2**0.5,
        count=16,
        lift=0.37,
        lift_error=0.11,
    )
    assert task.lift is not None
    assert task.lift.model_dump() == pytest.approx(lift.model_dump())
    (in_list,) = measured.list_tasks(ListTasks()).tasks
    assert in_list == task


def test_lift_card_follows_the_champion_and_the_recalled(measured: Registry) -> None:
    measure_all(measured)

    def named() -> tuple[str, int]:
        lift = measured.get_task(GetById(id="t")).lift
        assert lift is not None
        return lift.adapter_id, lift.adapter_version

    measured.set_adapter_alias(SetAdapterAlias(id="a", alias="champion", version=1))
    assert named() == ("a", 1)
    measured.disable_adapter(DisableAdapter(id="a", version=1, reason="bad"))
    assert named() == ("a", 2)
    measured.disable_adapter(DisableAdapter(id="a", reason="bad"))
    assert named() == ("base", 0)
    assert measured.get_task(GetById(id="t")).best_adapter == "b"


def test_lift_card_is_the_bases_when_no_adapter_is_eligible(measured: Registry) -> None:
    base = {"judged_score": 0.41, "judged_count": 8, "eligible": False}
    measure(measured, "base", 0, score=0.4, shrunk_score=0.4, **base)
    measure(measured, "a", 2, score=0.6, shrunk_score=0.4, eligible=False)
    measure(measured, "b", 1, score=0.7, shrunk_score=0.4, eligible=False, standard_error=0.05)
    task = measured.get_task(GetById(id="t"))
    assert task.best_adapter == "b"
    assert task.lift is not None
    assert (task.lift.adapter_id, task.lift.score, task.lift.lift, task.lift.count) == ("base", 0.41, 0.0, 8)


def test_lift_card_is_of_the_first_eligible_place_whatever_all_examples_say(measured: Registry) -> None:
    base = {"judged_score": 0.41, "judged_count": 16, "eligible": False}
    measure(measured, "base", 0, score=0.4, shrunk_score=0.4, **base)
    judged = {"judged_count": 16, "lift": 0.3, "lift_error": 0.1}
    measure(measured, "a", 2, shrunk_score=0.7, place=2, judged_score=0.71, **judged)
    measure(measured, "b", 1, shrunk_score=0.8, place=3, judged_score=0.95, **judged)
    measure(measured, "c", 1, shrunk_score=0.4, place=1, judged_score=0.4, judged_count=16, eligible=False)
    task = measured.get_task(GetById(id="t"))
    assert task.best_adapter == "b"
    assert task.lift is not None
    assert (task.lift.adapter_id, task.lift.score) == ("a", 0.71)


def test_lift_card_is_absent_before_both_were_judged(measured: Registry) -> None:
    assert measured.get_task(GetById(id="t")).lift is None
    measure(measured, "base", 0, score=0.4, shrunk_score=0.4, eligible=False)
    measure(measured, "a", 2, shrunk_score=0.7, judged_score=0.78, judged_count=3)
    task = measured.get_task(GetById(id="t"))
    assert (task.lift, task.best_adapter) == (None, "a")


def through_csv(page: AffinityList) -> ImportAffinities:
    data = (write_header() + write_affinities(page.affinities)).encode()
    return ImportAffinities(affinities=read_affinities(data))


def through_json(page: AffinityList) -> ImportAffinities:
    rows = page.model_dump(mode="json")["affinities"]
    return checked(ImportAffinities, {"affinities": rows})


def through_grpc(page: AffinityList) -> ImportAffinities:
    rows = to_message(page, pb.ListAffinitiesResponse).affinities
    return to_value(pb.ImportAffinitiesRequest(affinities=rows), ImportAffinities)


@pytest.mark.parametrize("way", [through_csv, through_json, through_grpc])
def test_export_is_equal_when_it_was_imported(measured: Registry, fresh: Registry, way: Any) -> None:
    measure_all(measured)
    # what protobuf's zeros must not turn into something else
    measure(fresh, "a", 1, shrunk_score=0.9)
    page = listed(measured)
    zero = page.affinities[0].model_copy(update={"shrunk_score": 0.0, "score": 0.3, "eligible": False})
    page = AffinityList(affinities=(zero, *page.affinities[1:]))
    imported = tuple(one.model_copy(update={"imported": True}) for one in page.affinities)
    for registry in (fresh, measured):
        assert registry.import_affinities(way(page)).imported_count == 5
        assert listed(registry).affinities == imported


def test_evidence_is_the_scores_own_when_none_is_given(measured: Registry) -> None:
    rows = [AffinityInput(task_id="t", adapter_id=name, score=0.6, count=5) for name in ("base", "b")]
    before = datetime.now(UTC)
    ahead = dataclasses.replace(rows[1], measure_time=before + timedelta(days=1))
    measured.import_affinities(ImportAffinities(affinities=(rows[0], ahead)))
    found: dict[str, Affinity] = {one.adapter_id: one for one in listed(measured).affinities}
    assert [(one.shrunk_score, one.eligible) for one in found.values()] == [(0.6, True), (0.6, False)]
    assert all(one.measure_time < before + timedelta(hours=1) for one in found.values())
    assert (found["b"].judged_score, found["b"].lift, found["b"].likelihood) == (None, None, None)
    task = measured.get_task(GetById(id="t"))
    assert (task.best_adapter, task.lift) == ("b", None)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"score": float("nan")}, "INVALID_FIELD"),
        ({"score": float("inf")}, "INVALID_FIELD"),
        ({"score": -0.1}, "INVALID_FIELD"),
        ({"score": 1.1}, "INVALID_FIELD"),
        ({"score": None}, "INVALID_FIELD"),
        ({"count": 0}, "INVALID_FIELD"),
        ({"count": 0, "likelihood": -1}, "INVALID_FIELD"),
        ({"count": 2**40}, "INVALID_FIELD"),
        ({"standard_error": -0.1}, "INVALID_FIELD"),
        ({"standard_error": float("nan")}, "INVALID_FIELD"),
        ({"shrunk_score": 2}, "INVALID_FIELD"),
        ({"judged_score": 0.5}, "INVALID_FIELD"),
        ({"judged_count": 3}, "INVALID_FIELD"),
        ({"lift": -1.5}, "INVALID_FIELD"),
        ({"lift_error": float("inf")}, "INVALID_FIELD"),
        ({"likelihood": 0.5}, "INVALID_FIELD"),
        ({"eligible": False}, "INVALID_FIELD"),
        ({"measure_time": "1969-12-31T23:59:59Z"}, "INVALID_FIELD"),
        ({"measure_time": "noon"}, "INVALID_FIELD"),
        ({"adapter_id": "base", "eligible": True}, "INVALID_FIELD"),
        ({"adapter_id": "base", "adapter_version": 1}, "INVALID_FIELD"),
        ({"adapter_id": "A b"}, "INVALID_ID"),
        ({"adapter_id": "a\0"}, "INVALID_TEXT"),
        ({"scroe": 1}, "INVALID_FIELD"),
        ({"metric": "rouge"}, "METRIC_MISMATCH"),
        ({"metric_version": 9}, "METRIC_MISMATCH"),
        ({"prompt_digest": "sha256:0"}, "PROMPT_MISMATCH"),
        ({"pool": "q"}, "POOL_MISMATCH"),
    ],
)
def test_import_names_the_place_and_changes_nothing_when_one_is_wrong(
    measured: Registry, fields: dict[str, Any], reason: str
) -> None:
    measure_all(measured)
    before = listed(measured)
    fine = {"task_id": "t", "adapter_id": "b", "score": 0.1, "count": 3}
    asked = {"affinities": [fine, {**fine, "adapter_id": "a", **fields}]}
    with pytest.raises(LorauterError) as caught:
        measured.import_affinities(checked(ImportAffinities, asked))
    assert caught.value.reason == reason
    assert caught.value.message.startswith("affinities[1]")
    assert caught.value.metadata["field"].startswith("affinities[1]")
    assert listed(measured) == before


def test_import_is_refused_when_the_task_was_changed_since_the_export(measured: Registry) -> None:
    measure_all(measured)
    asked = through_json(listed(measured))
    settings = {"max_new_tokens": 3}
    measured.update_task(UpdateTask.model_validate({"id": "t", "generation_settings": settings}))
    current = tuple(dataclasses.replace(one, task_version=0) for one in asked.affinities)
    with pytest.raises(LorauterError) as caught:
        measured.import_affinities(ImportAffinities(affinities=current))
    assert caught.value.reason == "PROMPT_MISMATCH"
    assert measured.import_affinities(asked).imported_count == 5
    assert listed(measured).affinities == ()


def test_large_import_is_taken_whole_with_more_ids_than_a_statement_has_parameters(
    measured: Registry,
) -> None:
    rows = [
        AffinityInput(task_id="t", adapter_id=f"n{number}", score=0.5, count=1) for number in range(70_000)
    ]
    with pytest.raises(LorauterError) as caught:
        measured.import_affinities(ImportAffinities(affinities=tuple(rows)))
    assert caught.value.reason == "ADAPTER_NOT_FOUND"
    with pytest.raises(LorauterError) as caught:
        checked(ImportAffinities, {"affinities": rows[:1] * 100_001})
    assert "100000" in caught.value.message
