"""Affinities and profiles on real PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import Session

from lorauter.errors import InvalidArgument, LorauterError, NotFound
from lorauter.identifiers import encode_generation
from lorauter.store import read, tables
from lorauter_registry.api.convert import checked
from lorauter_registry.domain.adapter_requests import (
    ActivateProfile,
    GetGeneration,
    ListProfiles,
    RegisterAdapter,
)
from lorauter_registry.domain.affinity_requests import ImportAffinities, ListAffinities
from lorauter_registry.domain.examples import ExampleSet
from lorauter_registry.domain.requests import CreatePool, CreateTask, GetById, PutValidationSet, UpdateTask
from lorauter_registry.service import Registry


@pytest.fixture
def measured(registry: Registry, tiny_pool: Any) -> Registry:
    """A registry whose task has an example and whose pool has adapters ``a`` (2 versions) and ``b``."""
    for name, seed in (("a", 0), ("a", 1), ("b", 2)):
        path = str(tiny_pool.adapter(f"{name}{seed}", seed=seed))
        registry.register_adapter(RegisterAdapter(id=name, pool="p", path=path))
    put(registry, "question")
    return registry


def put(registry: Registry, text: str) -> None:
    examples = ExampleSet(1_000)
    examples.add(text, "answer")
    registry.put_validation_set(PutValidationSet(task_id="t"), examples)


def affinity(adapter_id: str, score: float, **fields: Any) -> dict[str, Any]:
    return {"task_id": "t", "adapter_id": adapter_id, "score": score, "count": 10, **fields}


def load(registry: Registry, *affinities: dict[str, Any]) -> int:
    request = checked(ImportAffinities, {"affinities": affinities})
    return registry.import_affinities(request).imported_count


def scores(registry: Registry) -> dict[tuple[str, int], float]:
    page = registry.list_affinities(ListAffinities(pool="p"))
    return {(one.adapter_id, one.adapter_version): one.score for one in page.affinities}


def test_imported_scores_are_of_the_current_versions(measured: Registry) -> None:
    assert load(measured, affinity("base", 0.2), affinity("a", 0.7), affinity("b", 0.9)) == 3
    assert scores(measured) == {("base", 0): 0.2, ("a", 2): 0.7, ("b", 1): 0.9}
    task = measured.get_task(GetById(id="t"))
    assert (task.base_score, task.best_score, task.best_adapter) == (0.2, 0.9, "b")
    (first, *_) = measured.list_affinities(ListAffinities(adapter_id="a")).affinities
    assert (first.pool, first.metric, first.metric_version, first.imported) == ("p", "exact_match", 1, True)
    assert first.prompt_digest.startswith("sha256:")


def test_imported_score_replaces_the_one_before(measured: Registry) -> None:
    load(measured, affinity("a", 0.1))
    load(measured, affinity("a", 0.7), affinity("a", 0.3, adapter_version=1))
    assert scores(measured) == {("a", 2): 0.7, ("a", 1): 0.3}


def test_scores_of_earlier_task_versions_are_not_shown(measured: Registry) -> None:
    load(measured, affinity("a", 0.7))
    put(measured, "another question")
    assert scores(measured) == {}
    assert measured.get_task(GetById(id="t")).best_score is None
    load(measured, affinity("a", 0.6, task_version=1))
    assert scores(measured) == {}


def test_embedded_task_is_matched_once_scores_come_in(measured: Registry) -> None:
    with measured.context.engine.begin() as connection:
        connection.execute(update(tables.Task).values(state="EMBEDDED"))
    load(measured, affinity("a", 0.7))
    assert measured.get_task(GetById(id="t")).state == "MATCHED"


WRONG: list[tuple[dict[str, Any], type[LorauterError], str]] = [
    (affinity("nil", 1), NotFound, "ADAPTER_NOT_FOUND"),
    (affinity("a", 1, task_id="nil"), NotFound, "TASK_NOT_FOUND"),
    (affinity("a", 1, adapter_version=9), NotFound, "ADAPTER_VERSION_NOT_FOUND"),
    (affinity("a", 1, task_version=9), NotFound, "TASK_VERSION_NOT_FOUND"),
    (affinity("a", 1, pool="q"), InvalidArgument, "POOL_MISMATCH"),
    (affinity("c", 1), InvalidArgument, "POOL_MISMATCH"),
    (affinity("a", 1, task_id="empty"), InvalidArgument, "TASK_WITHOUT_EXAMPLES"),
    (affinity("base", 1, adapter_version=1), InvalidArgument, "INVALID_FIELD"),
    (affinity("b", 0.5), InvalidArgument, "DUPLICATE_AFFINITY"),
]


def test_nothing_is_imported_when_one_affinity_is_wrong(measured: Registry, tiny_pool: Any) -> None:
    measured.create_pool(CreatePool(id="q", base_model=tiny_pool.base_model))
    measured.create_task(CreateTask(id="empty", pool="p", metric="exact_match"))
    path = str(tiny_pool.adapter("c", seed=5))
    measured.register_adapter(RegisterAdapter(id="c", pool="q", path=path))
    before = measured.get_generation(GetGeneration())
    for wrong, error, reason in WRONG:
        with pytest.raises(error, match=r"affinities\[1\]") as caught:
            load(measured, affinity("b", 0.5), wrong)
        assert caught.value.reason == reason
        assert scores(measured) == {}
    assert measured.get_generation(GetGeneration()) == before


def profile(registry: Registry, digest: str, active: bool) -> None:
    with Session(registry.context.engine) as session:
        row = tables.Profile(
            tenant="default", pool="p", digest=digest, generation=3, constants={"tau": 0.05}, active=active
        )
        session.add(row)
        session.commit()


def pinned(registry: Registry) -> str:
    with read(registry.context.engine) as session:
        pool = session.get(tables.Pool, ("default", "p"))
        assert pool is not None
        return pool.pinned_profile


def test_profile_is_pinned_and_unpinned(registry: Registry) -> None:
    assert registry.activate_profile(ActivateProfile(pool="p")).digest == ""
    profile(registry, "sha256:old", active=False)
    profile(registry, "sha256:new", active=True)
    page = registry.list_profiles(ListProfiles(pool="p"))
    assert [one.digest for one in page.profiles] == ["sha256:new", "sha256:old"]
    restored = registry.activate_profile(ActivateProfile(pool="p", digest="sha256:old"))
    assert (restored.constants, restored.generation) == ({"tau": 0.05}, encode_generation(3, "default"))
    assert pinned(registry) == "sha256:old"
    assert registry.activate_profile(ActivateProfile(pool="p")).digest == "sha256:new"
    assert pinned(registry) == ""
    with pytest.raises(NotFound):
        registry.activate_profile(ActivateProfile(pool="p", digest="sha256:nil"))


def test_published_generation_is_told_once_there_is_one(registry: Registry) -> None:
    assert registry.get_generation(GetGeneration()).published_generation == ""
    with registry.context.engine.begin() as connection:
        connection.execute(update(tables.Generation).values(published=1))
    told = registry.get_generation(GetGeneration())
    assert told.published_generation == encode_generation(1, "default")
    changed = registry.update_task(UpdateTask(id="t", description="x"))
    assert registry.get_generation(GetGeneration()).generation == changed.generation != told.generation
