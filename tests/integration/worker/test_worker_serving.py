"""What the registry says of serving, in the index: backends' limits, pools' policies, adapters' ranks."""

from __future__ import annotations

from typing import Any

from lorauter.routing.model import Backend, Serving
from lorauter.store import tables, write

LIMITS: dict[str, Any] = {
    "adapter_slots": 8,
    "max_rank": 64,
    "max_concurrent_requests": 128,
    "adapters_path": "/models/adapters",
    "shards": 2,
}


def test_limits_policy_and_ranks_are_projected(registry, index_worker):
    registry.add_pool(serving={"fallback": "REFUSE", "compose_on_demand": True})
    registry.add_backend("dns+http://vllm:8000", kind="VLLM", limits=LIMITS)
    registry.add_version("sorter", "sha256:" + "1" * 64)
    index_worker.indexer.drain()
    pool = index_worker.pool()
    assert pool.backends == (Backend("vllm", "vllm", "dns+http://vllm:8000", draining=False, **LIMITS),)
    assert pool.serving == Serving(refuse_degraded=True, compose_on_demand=True)
    assert pool.manifests == ()
    assert [(adapter.adapter_id, adapter.rank) for adapter in pool.adapters] == [("sorter", 8)]


def test_defaults_are_projected_when_nothing_was_said(registry, index_worker):
    registry.add_pool(serving={"fallback": "DEGRADE", "manifest_policy": "AUTO"})
    registry.add_backend("http://127.0.0.1:1", limits={**dict.fromkeys(LIMITS, 0), "adapters_path": ""})
    registry.add_backend("http://127.0.0.1:2", kind="TGI")
    index_worker.indexer.drain()
    pool = index_worker.pool()
    assert pool.backends == (
        Backend("engine", "engine", "http://127.0.0.1:1", draining=False),
        Backend("tgi", "tgi", "http://127.0.0.1:2", draining=False),
    )
    assert pool.backends[0].adapters_path == "/adapters"
    assert pool.serving == Serving()


def test_index_follows_when_limits_and_policy_change(registry, index_worker):
    registry.add_pool()
    registry.add_backend("http://127.0.0.1:1", kind="VLLM")
    index_worker.indexer.drain()
    before = index_worker.snapshot()
    with write(registry.engine, registry.tenant) as tx:
        pool = tx.session.get(tables.Pool, (registry.tenant, next(iter(before.pools))))
        pool.serving = {"compose_on_demand": True}
        tx.session.get(tables.Backend, (registry.tenant, "vllm")).limits = {"max_rank": 32}
        tx.owe("index", pool.id)
    index_worker.indexer.drain()
    after = index_worker.pool()
    assert (after.serving.compose_on_demand, after.backends[0].max_rank) == (True, 32)
    assert index_worker.snapshot().digest != before.digest
