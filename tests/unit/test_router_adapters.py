"""Which adapter version a pin means, and which are listed."""

from __future__ import annotations

from typing import Any

import pytest

from lorauter.errors import FailedPrecondition, InvalidArgument, LorauterError, NotFound
from lorauter.routing import fit_profile
from lorauter.routing.model import Adapter, Pool
from lorauter_router.domain import Servable, resolve, servable_page

NOW = 1_000.0


def pool(*adapters: Adapter) -> Pool:
    return Pool("p", "m", (), "ROUTE", fit_profile([]), (), adapters, ())


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
    assert resolve(pool(*VERSIONS), reference, NOW).version == number


def test_bare_id_means_the_newest_that_may_be_pinned_when_none_is_routable() -> None:
    left = [adapter for adapter in VERSIONS if not adapter.routable]
    assert resolve(pool(*left), "a", NOW).version == 4


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
        resolve(pool(*VERSIONS), reference, NOW)
    assert refused.value.reason == reason
    if reference == "a@1":
        assert refused.value.metadata["successor"] == "b"
        assert "'b'" in refused.value.message


def test_pages_hold_every_servable_version_once_when_followed() -> None:
    seen, token = [], ""
    while True:
        page, token = servable_page([pool(*VERSIONS)], 2, token, NOW)
        seen += [adapter.version for _, adapter in page]
        if not token:
            break
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("now", [0.0, NOW - 1, NOW, NOW + 0.5, NOW + 1, NOW + 2])
def test_servable_versions_are_counted_like_they_are_listed(now: float) -> None:
    listed, _ = servable_page([pool(*VERSIONS)], 0, "", now)
    assert Servable.of(pool(*VERSIONS)).count(now) == len(listed)


def test_page_token_stays_valid_when_the_adapter_it_names_is_gone() -> None:
    _, token = servable_page([pool(*VERSIONS)], 1, "", NOW)
    page, _ = servable_page([pool(*VERSIONS[2:])], 1, token, NOW)
    assert [adapter.version for _, adapter in page] == [3]


@pytest.mark.parametrize(
    "token", ["x", "!!", "bnVsbA==", "WzFd", "eyJhIjogMX0=", "WzEsMiwid3JvbmciXQ==", "é"]
)
def test_page_token_is_refused_when_it_is_made_up(token: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        servable_page([pool(*VERSIONS)], 0, token, NOW)
    assert refused.value.reason == "INVALID_PAGE_TOKEN"


def test_page_size_is_refused_when_negative() -> None:
    with pytest.raises(InvalidArgument) as refused:
        servable_page([pool(*VERSIONS)], -1, "", NOW)
    assert refused.value.reason == "INVALID_PAGE_SIZE"
