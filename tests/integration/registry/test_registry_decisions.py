"""Recorded decisions, as the registry finds them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session

from lorauter.errors import InvalidArgument, NotFound
from lorauter.identifiers import encode_generation
from lorauter.store import write
from lorauter.store.tables import Decision, Pool
from lorauter_registry.domain.decisions import ListDecisions
from lorauter_registry.domain.requests import CreatePool, GetById
from lorauter_registry.service import Registry

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


def put(registry: Registry, number: int, pool: str = "p", **fields: Any) -> str:
    """Stores a decision that is so many minutes old."""
    given = {
        "tenant": "default",
        "id": f"{number:032x}",
        "pool": pool,
        "time": NOON - timedelta(minutes=number),
        "strategy": "default",
        "generation": number,
        "profile_digest": "",
        "encoder_digest": "",
        "stale": False,
        "action": "BASE",
        "best_adapter": "base",
        "best_version": 0,
        "expected_utility": 0.0,
        "typicality": 0.0,
        "adapters": [],
        "tasks": [],
        "options": {"max_adapters": 3},
        "text_digest": "",
        "vector": b"v",
        "terms": b"t",
        "text": "",
        **fields,
    }
    with Session(registry.context.engine) as session:
        session.add(Decision.model_validate(given))
        session.commit()
    return f"{number:032x}"


def listed(registry: Registry, **fields: Any) -> list[str]:
    """Returns the ids on all pages."""
    ids: list[str] = []
    token = ""
    while True:
        page = registry.list_decisions(ListDecisions(page_token=token, **fields))
        ids += [one.id for one in page.decisions]
        token = page.next_page_token
        if not token:
            return ids


def test_decisions_are_listed_newest_first_by_pool_and_time(registry: Registry) -> None:
    registry.create_pool(CreatePool(id="q", base_model="tiny/base"))
    ids = [put(registry, number, "pq"[number % 2]) for number in range(7)]
    put(registry, 8, tenant="other")
    assert listed(registry) == ids
    assert listed(registry, page_size=2) == ids
    assert listed(registry, pool="q", page_size=2) == ids[1::2]
    assert listed(registry, since=NOON - timedelta(minutes=3)) == ids[:4]
    assert listed(registry, pool="p", since=NOON - timedelta(minutes=3), page_size=1) == ids[:4:2]


def test_features_are_listed_when_asked_for_and_always_there_for_one(registry: Registry) -> None:
    only = put(registry, 1)
    (bare,) = registry.list_decisions(ListDecisions()).decisions
    (full,) = registry.list_decisions(ListDecisions(with_features=True)).decisions
    assert (bare.vector, bare.terms, full.vector, full.terms) == (b"", b"", b"v", b"t")
    assert registry.get_decision(GetById(id=only)) == full
    assert full.generation == encode_generation(1, "default")
    assert full.pool_tenant == "default"


def test_decisions_in_a_public_pool_are_listed_by_its_name_to_who_asked_alone(registry: Registry) -> None:
    with write(registry.context.engine, "public") as tx:
        tx.session.add(Pool(tenant="public", id="shared", base_model="tiny/base", generation=1))
    shared = put(registry, 1, pool="shared", pool_tenant="public")
    put(registry, 2, pool="shared", pool_tenant="public", tenant="other")
    own = put(registry, 3)
    (found,) = registry.list_decisions(ListDecisions(pool="shared")).decisions
    assert (found.id, found.pool_tenant, found.generation) == (
        shared,
        "public",
        encode_generation(1, "public"),
    )
    assert listed(registry) == [shared, own]
    registry.create_pool(CreatePool(id="shared", base_model="tiny/base"))
    assert listed(registry, pool="shared") == []


def test_decision_or_pool_is_refused_when_it_is_unknown(registry: Registry) -> None:
    put(registry, 1, tenant="other")
    with pytest.raises(NotFound) as unknown:
        registry.get_decision(GetById(id=f"{1:032x}"))
    assert unknown.value.reason == "DECISION_NOT_FOUND"
    with pytest.raises(NotFound) as nowhere:
        registry.list_decisions(ListDecisions(pool="nowhere"))
    assert nowhere.value.reason == "POOL_NOT_FOUND"
    with pytest.raises(InvalidArgument) as token:
        registry.list_decisions(ListDecisions(page_token="abc"))
    assert token.value.reason == "INVALID_PAGE_TOKEN"
