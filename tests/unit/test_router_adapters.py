"""Which adapter version a pin means, and which are listed."""

from __future__ import annotations

from typing import Any

import pytest

from lorauter.errors import FailedPrecondition, InvalidArgument, LorauterError, NotFound
from lorauter.routing import fit_profile
from lorauter.routing.model import Adapter, Pool, Snapshot
from lorauter_router.domain import ServedSnapshot

NOW = 1_000.0


def served(*adapters: Adapter, others: tuple[str, ...] = ()) -> ServedSnapshot:
    profile = fit_profile([])
    pools = {
        name: Pool(name, "m", (), "ROUTE", profile, (), adapters if name == "p" else (), ())
        for name in ("p", *others)
    }
    return ServedSnapshot.of(Snapshot("default", 3, "", "sha256:e", pools))


def version(number: int, routable: bool = False, **fields: Any) -> Adapter:
    return Adapter("a", number, f"sha256:{number}", routable, **fields)


VERSIONS = (
    version(1, refusal="ADAPTER_RETIRED", successor="b"),
    version(2, pins_until=NOW + 1, aliases=("old",)),
    version(3, routable=True, aliases=("champion",)),
    version(4, aliases=("candidate",)),
    version(5, refusal="ADAPTER_DISABLED"),
    version(6, pins_until=NOW),
)


@pytest.mark.parametrize(
    ("reference", "number"),
    [("a", 3), ("a@3", 3), ("a@champion", 3), ("a@2", 2), ("a@old", 2), ("a@candidate", 4)],
)
def test_pin_means_the_version_that_it_names_when_it_may_be_served(reference: str, number: int) -> None:
    pool, adapter = served(*VERSIONS).resolve("p", reference, NOW)
    assert (pool.pool_id, adapter.version) == ("p", number)


def test_bare_id_means_the_newest_that_may_be_pinned_when_none_is_routable() -> None:
    left = [adapter for adapter in VERSIONS if not adapter.routable]
    assert served(*left).resolve("", "a", NOW)[1].version == 4


@pytest.mark.parametrize(
    ("reference", "kind", "reason"),
    [
        ("a@1", FailedPrecondition, "ADAPTER_RETIRED"),
        ("a@5", FailedPrecondition, "ADAPTER_DISABLED"),
        ("a@6", FailedPrecondition, "ADAPTER_RETIRED"),
        ("a@9", NotFound, "UNKNOWN_ADAPTER_VERSION"),
        ("a@nobody", NotFound, "UNKNOWN_ADAPTER_VERSION"),
        ("z", NotFound, "UNKNOWN_ADAPTER"),
        ("", InvalidArgument, "ADAPTER_REQUIRED"),
        ("@1", InvalidArgument, "ADAPTER_REQUIRED"),
        ("a@", InvalidArgument, "ADAPTER_REQUIRED"),
        ("base", InvalidArgument, "RESERVED_ID"),
    ],
)
def test_pin_is_refused_with_a_reason_when_it_cannot_be_served(
    reference: str, kind: type[LorauterError], reason: str
) -> None:
    with pytest.raises(kind) as refused:
        served(*VERSIONS).resolve("", reference, NOW)
    assert refused.value.reason == reason
    if reference == "a@1":
        assert refused.value.metadata["successor"] == "b"
        assert "'b'" in refused.value.message


def test_pages_hold_every_servable_version_once_when_followed() -> None:
    snapshot = served(*VERSIONS)
    seen, token = [], ""
    while True:
        page, token = snapshot.servable_page("", 2, token, NOW)
        seen += [adapter.version for _, adapter in page]
        if not token:
            break
    assert seen == [2, 3, 4]


def test_page_token_stays_valid_when_the_adapter_it_names_is_gone() -> None:
    _, token = served(*VERSIONS).servable_page("p", 1, "", NOW)
    page, _ = served(*VERSIONS[2:]).servable_page("p", 1, token, NOW)
    assert [adapter.version for _, adapter in page] == [3]


@pytest.mark.parametrize(
    "token", ["x", "!!", "bnVsbA==", "WzFd", "eyJhIjogMX0=", "WzEsMiwid3JvbmciXQ==", "é"]
)
def test_page_token_is_refused_when_it_is_made_up(token: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        served(*VERSIONS).servable_page("", 0, token, NOW)
    assert refused.value.reason == "INVALID_PAGE_TOKEN"


def test_page_size_is_refused_when_negative() -> None:
    with pytest.raises(InvalidArgument) as refused:
        served(*VERSIONS).servable_page("", -1, "", NOW)
    assert refused.value.reason == "INVALID_PAGE_SIZE"


def test_pool_is_the_only_one_when_none_is_named() -> None:
    assert served().pool("").pool_id == "p"
    with pytest.raises(InvalidArgument) as refused:
        served(others=("q",)).pool("")
    assert (refused.value.reason, refused.value.metadata["known"]) == ("POOL_REQUIRED", "p, q")
    with pytest.raises(NotFound):
        served().pool("q")
    with pytest.raises(NotFound):
        ServedSnapshot.of(Snapshot("default", 3, "", "sha256:e", {})).pool("")
