"""Adapters on real PostgreSQL and a real store: registration, aliases, states."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lorauter.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    LorauterError,
    NotFound,
    Unavailable,
)
from lorauter_registry.domain.adapter_requests import (
    DisableAdapter,
    GetGeneration,
    ListAdapters,
    ListAdapterVersions,
    RegisterAdapter,
    RetireAdapter,
    SetAdapterAlias,
    UpdateAdapter,
)
from lorauter_registry.domain.requests import CreatePool, GetById, UpdatePool
from lorauter_registry.domain.resources import Adapter
from lorauter_registry.service import Registry


def register(registry: Registry, files: Any, seed: int = 0, **fields: Any) -> Adapter:
    """Registers adapter ``a`` from files that depend on ``seed``."""
    path = files.adapter(f"seed{seed}", seed=seed)
    return registry.register_adapter(
        RegisterAdapter.model_validate({"id": "a", "pool": "p", "path": str(path), **fields})
    )


def states(registry: Registry) -> dict[int, str]:
    page = registry.list_adapter_versions(ListAdapterVersions(id="a"))
    return {version.version: str(version.state) for version in page.versions}


def test_pool_knows_its_base_when_it_was_given_by_path(registry: Registry, tiny_pool: Any) -> None:
    pool = registry.get_pool(GetById(id="p"))
    assert [(one.name, one.in_features, one.out_features) for one in pool.modules] == [
        (tiny_pool.module, 8, 8)
    ]
    assert pool.weights_digest.startswith("sha256:")
    assert pool.tokenizer_digest.startswith("sha256:")
    both = {"id": "q", "base_model": "x", "base_path": str(tiny_pool.base())}
    modules = [{"name": "m", "in_features": 1, "out_features": 1}]
    with pytest.raises(InvalidArgument):
        registry.create_pool(CreatePool.model_validate({**both, "modules": modules}))
    with pytest.raises(FailedPrecondition) as caught:
        registry.create_pool(CreatePool(id="q", base_model="x", base_path=str(tiny_pool.root)))
    assert caught.value.reason == "BASE_UNREADABLE"


def test_adapter_is_active_and_stored_when_its_files_pass(registry: Registry, tiny_pool: Any) -> None:
    adapter = register(registry, tiny_pool, description="d", tags=["x"])
    version = adapter.latest
    assert (version.version, version.state, adapter.served_version) == (1, "ACTIVE", 1)
    assert (version.rank, version.alpha, version.rslora, version.base_model) == (2, 4.0, False, "tiny/base")
    assert version.target_modules == ("q_proj",)
    assert version.source == f"path:{tiny_pool.root}/seed0"
    assert registry.context.store.verify(version.digest).is_dir()


def test_equal_files_make_no_new_version(registry: Registry, tiny_pool: Any) -> None:
    first = register(registry, tiny_pool, description="d")
    before = registry.get_generation(GetGeneration())
    assert register(registry, tiny_pool) == first
    assert registry.get_generation(GetGeneration()) == before
    described = register(registry, tiny_pool, description="other")
    assert (described.description, described.latest.version) == ("other", 1)


def test_other_files_make_a_new_version(registry: Registry, tiny_pool: Any) -> None:
    register(registry, tiny_pool)
    second = register(registry, tiny_pool, seed=1)
    assert (second.latest.version, second.served_version) == (2, 2)
    assert states(registry) == {2: "ACTIVE", 1: "ACTIVE"}


def test_registration_is_done_once_when_repeated_after_its_files_went(
    registry: Registry, tiny_pool: Any
) -> None:
    first = register(registry, tiny_pool, request_id="r")
    for file in (tiny_pool.root / "seed0").iterdir():
        file.unlink()
    request = {"id": "a", "pool": "p", "path": f"{tiny_pool.root}/seed0", "request_id": "r"}
    assert registry.register_adapter(RegisterAdapter.model_validate(request)) == first


def test_foreign_base_needs_an_alias_or_a_word_of_the_caller(registry: Registry, tiny_pool: Any) -> None:
    path = str(tiny_pool.adapter("foreign", base="other/name"))
    with pytest.raises(InvalidArgument) as caught:
        registry.register_adapter(RegisterAdapter(id="a", pool="p", path=path))
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
    vouched = registry.register_adapter(RegisterAdapter(id="a", pool="p", path=path, assume_base=True))
    assert (vouched.latest.base_assumed, vouched.latest.base_model) == (True, "other/name")
    registry.update_pool(UpdatePool(id="p", aliases=("other/name",), replace_aliases=True))
    known = registry.register_adapter(RegisterAdapter(id="b", pool="p", path=path))
    assert known.latest.base_assumed is False


def test_other_chat_format_needs_a_word_of_the_caller(registry: Registry, tiny_pool: Any) -> None:
    base, folder = tiny_pool.base(), tiny_pool.adapter("chat")
    says = folder / "tokenizer_config.json"
    (base / says.name).write_text(json.dumps({"chat_template": "{{ a }}", "eos_token": "</s>"}))
    request = {"id": "chats", "base_model": tiny_pool.base_model, "base_path": str(base)}
    registry.create_pool(CreatePool.model_validate(request))
    for own, field in (
        ({"chat_template": "{{ b }}"}, "chat_template"),
        ({"eos_token": {"content": "<|im_end|>"}}, "eos_token"),
    ):
        says.write_text(json.dumps(own))
        with pytest.raises(InvalidArgument) as caught:
            registry.register_adapter(RegisterAdapter(id="c", pool="chats", path=str(folder)))
        assert (caught.value.reason, caught.value.metadata) == (
            "ADAPTER_CHAT_FORMAT_MISMATCH",
            {"field": field},
        )
    assert registry.context.store.digests() == []
    vouched = {"path": str(folder), "assume_base": True}
    answer = registry.register_adapter(
        RegisterAdapter.model_validate({"id": "c", "pool": "chats", **vouched})
    )
    assert answer.latest.base_assumed is True
    says.write_text(json.dumps({"chat_template": "{{ a }}", "eos_token": "</s>"}))
    same = registry.register_adapter(RegisterAdapter(id="d", pool="chats", path=str(folder)))
    assert same.latest.base_assumed is False
    unknown = registry.register_adapter(RegisterAdapter(id="e", pool="p", path=str(folder)))
    assert unknown.latest.base_assumed is False


def test_pool_is_refused_when_its_bases_chat_format_cannot_be_read(
    registry: Registry, tiny_pool: Any
) -> None:
    base = tiny_pool.base()
    (base / "tokenizer_config.json").write_text("{")
    with pytest.raises(FailedPrecondition) as caught:
        registry.create_pool(CreatePool(id="broken", base_model="x", base_path=str(base)))
    assert caught.value.reason == "BASE_UNREADABLE"


def test_shapes_are_checked_also_when_the_base_is_assumed(registry: Registry, tiny_pool: Any) -> None:
    path = str(tiny_pool.adapter("wide", base="other/name", width=16))
    with pytest.raises(InvalidArgument) as caught:
        registry.register_adapter(RegisterAdapter(id="a", pool="p", path=path, assume_base=True))
    assert caught.value.reason == "ADAPTER_SHAPE_MISMATCH"
    assert registry.context.store.digests() == []


def test_id_is_refused_when_it_is_another_pools_or_the_base(registry: Registry, tiny_pool: Any) -> None:
    register(registry, tiny_pool)
    registry.create_pool(CreatePool(id="q", base_model="tiny-base", aliases=(tiny_pool.base_model,)))
    with pytest.raises(AlreadyExists):
        register(registry, tiny_pool, pool="q")
    with pytest.raises(InvalidArgument) as caught:
        register(registry, tiny_pool, pool="q", id="tiny-base")
    assert caught.value.reason == "RESERVED_ID"


def test_hub_is_asked_for_hub_adapters(registry: Registry) -> None:
    with pytest.raises(Unavailable):
        registry.register_adapter(RegisterAdapter(id="a", pool="p", hub=f"n/m@{'0' * 40}"))
    with pytest.raises(NotFound):
        registry.get_adapter(GetById(id="a"))


def test_error_is_unavailable_when_the_store_cannot_be_written(registry: Registry, tiny_pool: Any) -> None:
    registry.context.store.root.write_text("a file where the store's folder should be")
    with pytest.raises(Unavailable) as caught:
        register(registry, tiny_pool)
    assert caught.value.reason == "ADAPTER_STORE_UNAVAILABLE"


def test_champion_is_served_when_it_is_active(registry: Registry, tiny_pool: Any) -> None:
    register(registry, tiny_pool)
    register(registry, tiny_pool, seed=1)
    aliased = registry.set_adapter_alias(SetAdapterAlias(id="a", alias="champion", version=1))
    assert (aliased.aliases, aliased.served_version) == ({"champion": 1}, 1)
    retired = registry.retire_adapter(RetireAdapter(id="a", version=1))
    assert retired.served_version == 2
    removed = registry.set_adapter_alias(SetAdapterAlias(id="a", alias="champion"))
    assert removed.aliases == {}
    refusals: list[tuple[dict[str, Any], type[LorauterError]]] = [
        ({"alias": "champion"}, NotFound),
        ({"alias": "champion", "version": 9}, NotFound),
        ({"alias": "champion", "version": 1}, FailedPrecondition),
        ({"alias": "x", "version": 2, "etag": "old"}, Conflict),
    ]
    for request, error in refusals:
        with pytest.raises(error):
            registry.set_adapter_alias(SetAdapterAlias.model_validate({"id": "a", **request}))


def test_retired_adapter_drains_until_its_pins_end(registry: Registry, tiny_pool: Any) -> None:
    register(registry, tiny_pool)
    registry.register_adapter(RegisterAdapter(id="b", pool="p", path=str(tiny_pool.adapter("b", seed=7))))
    until = datetime.now(UTC) + timedelta(days=1)
    draining = registry.retire_adapter(RetireAdapter(id="a", pins_until=until, successor="b"))
    assert (draining.latest.state, draining.latest.successor, draining.served_version) == ("DRAINING", "b", 0)
    assert draining.latest.pins_until == until
    retired = registry.retire_adapter(RetireAdapter(id="a", successor="b"))
    assert (retired.latest.state, retired.latest.pins_until) == ("RETIRED", None)
    with pytest.raises(FailedPrecondition) as caught:
        registry.retire_adapter(RetireAdapter(id="a"))
    assert caught.value.reason == "NOTHING_TO_RETIRE"
    with pytest.raises(FailedPrecondition) as transition:
        registry.retire_adapter(RetireAdapter(id="a", version=1, pins_until=until))
    assert transition.value.reason == "INVALID_TRANSITION"


def test_retirement_is_refused_when_it_makes_no_sense(registry: Registry, tiny_pool: Any) -> None:
    before = register(registry, tiny_pool)
    refusals: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"pins_until": datetime(2020, 1, 1, tzinfo=UTC)}, InvalidArgument),
        ({"pins_until": datetime(9999, 1, 1, tzinfo=UTC)}, InvalidArgument),
        ({"successor": "a"}, InvalidArgument),
        ({"successor": "nil"}, NotFound),
        ({"version": 9}, NotFound),
    ]
    for fields, error in refusals:
        with pytest.raises(error):
            registry.retire_adapter(RetireAdapter.model_validate({"id": "a", **fields}))
    assert registry.get_adapter(GetById(id="a")) == before


def test_recalled_files_are_refused_under_every_id(registry: Registry, tiny_pool: Any) -> None:
    register(registry, tiny_pool)
    recalled = registry.disable_adapter(DisableAdapter(id="a", reason="leaks names"))
    assert (recalled.latest.state, recalled.latest.state_reason) == ("QUARANTINED", "leaks names")
    assert recalled.served_version == 0
    for adapter_id in ("a", "b"):
        with pytest.raises(FailedPrecondition, match="leaks names") as caught:
            register(registry, tiny_pool, id=adapter_id)
        assert caught.value.reason == "ADAPTER_QUARANTINED"
    assert register(registry, tiny_pool, seed=1).served_version == 2


def test_adapters_are_listed_by_state_of_their_newest_version(registry: Registry, tiny_pool: Any) -> None:
    for number in range(4):
        register(registry, tiny_pool, seed=number, id=f"a{number}")
    registry.retire_adapter(RetireAdapter(id="a1"))
    registry.update_adapter(UpdateAdapter(id="a2", description="d"))
    page = registry.list_adapters(
        ListAdapters.model_validate({"pool": "p", "state": "ACTIVE", "page_size": 2})
    )
    assert [one.id for one in page.adapters] == ["a0", "a2"]
    assert page.adapters[1].description == "d"
    rest = ListAdapters.model_validate(
        {"pool": "p", "state": "ACTIVE", "page_size": 2, "page_token": page.next_page_token}
    )
    assert [one.id for one in registry.list_adapters(rest).adapters] == ["a3"]
    with pytest.raises(InvalidArgument):
        registry.list_adapters(ListAdapters(page_token=page.next_page_token))
