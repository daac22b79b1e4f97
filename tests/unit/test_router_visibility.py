"""What callers of a tenant see: their own pools before public ones, and nothing of anybody else's."""

from __future__ import annotations

from typing import Any

import pytest

from lorauter.access import PUBLIC_TENANT
from lorauter.errors import FailedPrecondition, InvalidArgument, LorauterError, NotFound, Unavailable
from lorauter.identifiers import decode_generation, encode_generation
from lorauter.routing import fit_profile
from lorauter.routing.model import Pool, Snapshot
from lorauter_router.domain import ServedSnapshot
from lorauter_router.visibility import Snapshots

MARK = "b-mark"
"""Begins every name of tenant b."""


def snapshot(tenant: str, *pools: str) -> ServedSnapshot:
    profile = fit_profile([])
    made = {name: Pool(name, f"base-of-{tenant}", (), "ROUTE", profile, (), (), ()) for name in pools}
    return ServedSnapshot.of(Snapshot(tenant, 3, f"sha256:{tenant}", "sha256:e", made))


def snapshots(a: tuple[str, ...] | None, public: tuple[str, ...] | None, **fields: Any) -> Snapshots:
    """Tenants a and public with these pools, and b, whom nobody should notice."""
    made = {"b": snapshot("b", f"{MARK}-1", f"{MARK}-2", "same")}
    for tenant, pools in (("a", a), (PUBLIC_TENANT, public)):
        if pools is not None:
            made[tenant] = snapshot(tenant, *pools)
    return Snapshots(served=made, **fields)


def refusal(kind: type[LorauterError], served: Snapshots, name: str) -> LorauterError:
    with pytest.raises(kind) as refused:
        served.view("a").pool(name)
    assert MARK not in f"{refused.value.message} {refused.value.metadata}"
    return refused.value


@pytest.mark.parametrize(
    ("own", "public", "name", "whose"),
    [
        (("p",), ("q",), "p", "a"),
        (("p",), ("q",), "q", PUBLIC_TENANT),
        (("same",), ("same",), "same", "a"),
        (("p",), ("q", "r"), "", "a"),
        ((), ("q",), "", PUBLIC_TENANT),
        (None, ("q",), "", PUBLIC_TENANT),
        (("p",), None, "", "a"),
    ],
)
def test_pool_is_the_tenants_own_before_a_public_one(own: Any, public: Any, name: str, whose: str) -> None:
    seen = snapshots(own, public).view("a").pool(name)
    assert (seen.tenant, seen.pool.base_model) == (whose, f"base-of-{whose}")
    assert seen.compiled.pool_id == seen.pool.pool_id


@pytest.mark.parametrize(
    ("own", "public", "name", "kind", "reason", "known"),
    [
        (("p", "o"), ("q",), "", InvalidArgument, "POOL_REQUIRED", "o, p, q"),
        ((), ("q", "r"), "", InvalidArgument, "POOL_REQUIRED", "q, r"),
        (("p",), ("q",), f"{MARK[:1]}", NotFound, "UNKNOWN_POOL", "p, q"),
        ((), (), "", NotFound, "UNKNOWN_POOL", "none"),
    ],
)
def test_errors_name_only_what_the_caller_sees(
    own: Any, public: Any, name: str, kind: type[LorauterError], reason: str, known: str
) -> None:
    error = refusal(kind, snapshots(own, public), name)
    assert (error.reason, error.metadata["known"]) == (reason, known)


def test_another_tenants_pool_is_answered_like_one_that_does_not_exist() -> None:
    served = snapshots(("p",), ("q",))
    with pytest.raises(NotFound) as there:
        served.view("a").pool(f"{MARK}-1")
    with pytest.raises(NotFound) as nowhere:
        served.view("a").pool(f"{MARK}-9")
    assert there.value.message.replace("-1", "-9") == nowhere.value.message


def test_pools_are_listed_without_those_that_ones_own_hide() -> None:
    seen = snapshots(("p", "same"), ("q", "same")).view("a").pools()
    assert [(each.tenant, each.pool.pool_id) for each in seen] == [
        ("a", "p"),
        ("a", "same"),
        (PUBLIC_TENANT, "q"),
    ]
    everything = snapshots(("p",), ("p",)).pools()
    assert {(each.tenant, each.pool.pool_id) for each in everything} >= {("a", "p"), (PUBLIC_TENANT, "p")}


def test_own_pools_are_awaited_when_they_are_there_but_cannot_be_served() -> None:
    served = snapshots(None, ("q",), lacking={"a": "points are missing"})
    for name in ("", "p", "q"):
        error = refusal(Unavailable, served, name)
        assert (error.reason, "points are missing" in error.message) == ("NO_SNAPSHOT", True)


def test_public_pools_are_awaited_only_by_those_who_may_mean_one() -> None:
    served = snapshots(("p",), None, lacking={PUBLIC_TENANT: "points are missing"})
    assert served.view("a").pool("p").tenant == "a"
    assert served.view("a").pool("").tenant == "a"
    assert refusal(Unavailable, served, "q").reason == "NO_SNAPSHOT"


def test_tenant_without_anything_is_told_so_and_others_are_not() -> None:
    served = Snapshots(served={"b": snapshot("b", "p")})
    with pytest.raises(Unavailable) as refused:
        served.view("a")
    assert refused.value.reason == "NO_SNAPSHOT"
    assert served.view("b").pool("").tenant == "b"


def test_tenant_is_sent_elsewhere_when_its_pools_are_not_followed_here() -> None:
    served = snapshots(("p",), ("q",), followed=frozenset({"b", PUBLIC_TENANT}))
    error = refusal(FailedPrecondition, served, "q")
    assert error.reason == "TENANT_NOT_SERVED"
    assert served.view("b").pool("q").tenant == PUBLIC_TENANT


def test_generations_of_tenants_have_nothing_in_common() -> None:
    tokens = {
        (tenant, number): encode_generation(number, tenant)
        for tenant in ("a", "b", PUBLIC_TENANT)
        for number in (0, 1, 2, 3, 1_000_000, 2**40 - 1)
    }
    assert len(set(tokens.values())) == len(tokens)
    for (tenant, number), token in tokens.items():
        assert decode_generation(token, tenant) == number
        for other in {"a", "b", PUBLIC_TENANT} - {tenant}:
            with pytest.raises(InvalidArgument) as refused:
                decode_generation(token, other)
            assert refused.value.reason == "FOREIGN_GENERATION"
    in_order = [encode_generation(number, "a") for number in range(50)]
    assert in_order != sorted(in_order)
