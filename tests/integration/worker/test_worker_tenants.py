"""Tenants whose pools, tasks and adapters have the same names have nothing else in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lorauter.access import PUBLIC_TENANT
from lorauter.errors import NotFound
from lorauter.lora.composites import CompositeStore
from lorauter.lora.servers import tgi
from lorauter_worker.service.compositions import Compositions, Member

from .conftest import POOL


@pytest.fixture
def others(registry: Any, index_worker: Any) -> Iterator[dict[str, Any]]:
    """Another tenant and the public one, in the same database."""
    names = (registry.tenant + "-b", PUBLIC_TENANT)
    yield {name: type(registry)(registry.engine, name) for name in names}
    index_worker.index.clear(PUBLIC_TENANT)  # whom every router serves


def fill(registry: Any, topic: str) -> None:
    registry.add_pool()
    registry.put_task("same", registry.questions(topic))
    registry.put_task("other", registry.questions(f"not {topic}"))
    registry.add_version("a", f"sha256:{registry.tenant}")
    registry.measure("same", "a", 1, 0.9)
    registry.measure("same", "base", 0, 0.1)


def test_nothing_that_others_do_changes_a_byte_of_a_tenants_snapshot(
    registry: Any, others: dict[str, Any], index_worker: Any, make_index_worker: Any
) -> None:
    fill(registry, "first")
    index_worker.indexer.drain()
    before = index_worker.snapshot()
    for other in others.values():
        fill(other, "second")
    index_worker.indexer.drain()
    for name, other in others.items():
        theirs = index_worker.index.read(name)
        assert [adapter.digest for adapter in theirs.pools[POOL].adapters] == [f"sha256:{name}"]
        assert theirs.pools[POOL].profile.digest != before.pools[POOL].profile.digest
        other.put_task("same", other.questions("third"))
        other.delete_task("other")
    index_worker.indexer.drain()
    index_worker.index.clear(registry.tenant)
    make_index_worker().indexer.reconcile()  # anew from the database; the root's digest covers everything
    after = index_worker.snapshot()
    assert (after.digest, after.generation) == (before.digest, before.generation)


def test_what_is_wrong_with_one_tenant_keeps_no_other_from_its_repair(
    registry: Any, others: dict[str, Any], index_worker: Any
) -> None:
    broken = others.pop(registry.tenant + "-b")
    for each in (broken, registry):
        fill(each, "topic")
        each.add_backend("http://127.0.0.1:1")
    index_worker.indexer.drain()
    broken.execute("UPDATE backend SET limits = '[]' WHERE tenant = :name", name=broken.tenant)
    broken.execute("UPDATE generation SET value = value + 1")
    for each in (broken, registry):
        index_worker.index.clear(each.tenant)
    # whichever of them comes first
    index_worker.indexer.reconcile()
    assert index_worker.index.published(broken.tenant) is None
    assert index_worker.snapshot().pools.keys() == {POOL}


def test_adapters_of_another_tenant_are_unknown_to_who_composes(
    registry: Any, others: dict[str, Any], tmp_path: Any
) -> None:
    fill(registry, "first")
    mine = Member("a", 1, 0.5)
    for name, other in others.items():
        other.add_pool()
        at = Compositions(registry.engine, CompositeStore(tmp_path), name)
        with pytest.raises(NotFound) as refused:
            at.ensure(POOL, [mine, Member("a", 1, 0.5)], tgi(1))
        assert refused.value.reason == "UNKNOWN_ADAPTER"
        with pytest.raises(NotFound) as refused:
            at.check("nowhere", [mine])
        assert refused.value.reason == "POOL_NOT_FOUND"
    assert list(tmp_path.iterdir()) == []
