"""Keys, scopes and tenants, and how services are told about them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from lorauter import AsyncClient, Client
from lorauter.access import (
    PUBLIC_TENANT,
    Caller,
    Scope,
    acting,
    caller,
    make_key,
    open_caller,
    read_key,
    scope_of,
)
from lorauter.client.options import access_metadata, merged
from lorauter.errors import Exhausted, InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from lorauter.gateway.v1 import gateway_pb2
from lorauter.registry.v1 import registry_pb2
from lorauter.router.v1 import router_pb2
from lorauter.server import remote_keys
from lorauter.server.access import OpenGate, access_headers, open_gate, presented_in
from lorauter.server.remote_keys import RemoteKeys
from lorauter.settings import AccessSettings, ApiKeySecret, RemoteAccessSettings, ServiceSettings

SERVICES = (
    registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
    router_pb2.DESCRIPTOR.services_by_name["RouterService"],
    gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"],
)
ALLOWED = {
    Scope.ADMIN: {Scope.ADMIN, Scope.WRITE, Scope.READ, Scope.INVOKE, Scope.ANY},
    Scope.WRITE: {Scope.WRITE, Scope.READ, Scope.ANY},
    Scope.READ: {Scope.READ, Scope.ANY},
    Scope.INVOKE: {Scope.INVOKE, Scope.ANY},
}


def is_allowed(who: Caller, asked: Scope | None, **options: bool) -> bool:
    try:
        who.require(asked, "Call", **options)
    except PermissionDenied:
        return False
    return True


def test_every_method_of_every_service_has_a_scope() -> None:
    for service in SERVICES:
        for method in service.methods:
            assert scope_of(service, method.name) in set(Scope), method.full_name
        assert scope_of(service, "NoSuchMethod") is None


@pytest.mark.parametrize("held", ALLOWED)
def test_key_allows_what_its_scope_includes_and_nothing_else(held: Scope) -> None:
    who = Caller("t", frozenset({held}))
    assert {asked for asked in Scope if is_allowed(who, asked)} == ALLOWED[held]
    assert not is_allowed(who, None)


def test_guest_of_the_public_tenant_reads_what_is_public_and_nothing_else() -> None:
    who = Caller("t", frozenset({Scope.ADMIN})).visiting(PUBLIC_TENANT)
    assert (who.tenant, who.guest) == (PUBLIC_TENANT, True)
    assert is_allowed(who, Scope.READ, public=True)
    assert not is_allowed(who, Scope.READ)
    assert not is_allowed(who, Scope.WRITE)
    owner = Caller(PUBLIC_TENANT, frozenset({Scope.ADMIN})).visiting(PUBLIC_TENANT)
    assert is_allowed(owner, Scope.WRITE)
    assert not open_caller("t").visiting(PUBLIC_TENANT).guest


def test_only_a_key_for_any_tenant_acts_for_another() -> None:
    who = Caller("t", frozenset({Scope.READ}))
    assert who.acting_for("") == who.acting_for("t") == who
    for tenant in ("other", PUBLIC_TENANT):
        with pytest.raises(PermissionDenied, match="another tenant"):
            who.acting_for(tenant)
        assert replace(who, any_tenant=True).acting_for(tenant).tenant == tenant
    with pytest.raises(PermissionDenied):
        who.visiting("other")
    for wrong in ("../other", "..", "A", "a/b", "x" * 64):
        with pytest.raises(InvalidArgument):
            replace(who, any_tenant=True).acting_for(wrong)


def test_caller_is_known_inside_a_call_only() -> None:
    with acting(open_caller("t")):
        assert caller().tenant == "t"
    with pytest.raises(LookupError):
        caller()


def test_key_is_what_it_was_made_as_and_its_secret_does_not_show() -> None:
    key, other = make_key(), make_key()
    presented = read_key(key)
    assert presented.matches(presented.digest)
    assert not presented.matches(read_key(other).digest)
    assert key.split("_", 2)[2] not in repr(presented)
    for wrong in ("", "lra_", key[:-1], key + "A", key.upper(), f" {key}", key.replace("lra", "sk")):
        assert read_key(wrong) is None


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("", "KEY_MISSING"),
        ("lra_x", "KEY_MALFORMED"),
        ("Basic YTpi", "KEY_MALFORMED"),
        ("Bearer nonsense", "KEY_MALFORMED"),
    ],
)
def test_header_is_refused_without_repeating_it_when_it_is_no_key(sent: str, reason: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        presented_in(sent)
    assert refused.value.reason == reason
    assert not sent or sent.split()[-1] not in refused.value.message


def test_key_sent_twice_is_no_key() -> None:
    first, second = (f"Bearer {make_key()}" for _ in range(2))
    sent = access_headers([("authorization", first), ("x-other", "1"), ("authorization", second)])
    with pytest.raises(Unauthenticated, match="no lorauter key"):
        presented_in(sent["authorization"])


def test_client_sends_its_key_and_tenant_and_refuses_what_no_header_can_carry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORAUTER_API_KEY", "from-environment")
    assert access_metadata(None, "") == (("authorization", "Bearer from-environment"),)
    assert access_metadata("", "") == ()
    assert dict(access_metadata("k", "t")) == {"authorization": "Bearer k", "x-lorauter-tenant": "t"}
    assert dict(merged(access_metadata("k", "t"), (("authorization", "other"),))) == {
        "authorization": "other",
        "x-lorauter-tenant": "t",
    }
    for make in (Client, AsyncClient):
        wrong: Any
        for wrong in ({"api_key": "a b"}, {"api_key": "a\n"}, {"tenant": "ü"}):
            with pytest.raises(InvalidArgument, match=r"letters"):
                make(**wrong)
        assert "k-secret" not in repr(make(api_key="k-secret").registry.transport)


class Keyed(ServiceSettings):
    api_key: ApiKeySecret


def test_settings_never_show_a_key_and_refuse_what_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = make_key()
    monkeypatch.setenv("LORAUTER_API_KEY", key)
    assert key not in repr(Keyed.load().redacted()) + repr(Keyed.load())
    monkeypatch.setenv("LORAUTER_API_KEY", key[:-3])
    with pytest.raises(SystemExit):
        Keyed.load()
    said = capsys.readouterr().err
    assert said.startswith("LORAUTER_API_KEY: ")
    assert key[:-3] not in said


def test_service_does_not_start_when_nobody_could_check_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LORAUTER_REGISTRY_ADDRESS", raising=False)
    monkeypatch.delenv("LORAUTER_ACCESS", raising=False)
    with pytest.raises(SystemExit):
        RemoteAccessSettings.load()
    said = capsys.readouterr().err
    assert said.startswith("LORAUTER_REGISTRY_ADDRESS: ")
    assert "LORAUTER_ACCESS=open" in said
    monkeypatch.setenv("LORAUTER_ACCESS", "open")
    assert RemoteAccessSettings.load().registry_address == ""


@pytest.mark.parametrize(
    ("host", "warns"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True)]
)
def test_open_access_is_warned_about_where_others_reach_it(host: str, warns: bool) -> None:
    with capture_logs() as logs:
        gate = open_gate(AccessSettings(access="open", host=host))
    assert isinstance(gate, OpenGate)
    assert [log["event"] for log in logs] == ["access.open"] * warns


async def test_known_key_waits_once_for_a_registry_that_has_gone_silent() -> None:
    key, never = f"Bearer {make_key()}", asyncio.Event()

    class Registry:
        answers = iter([registry_pb2.Caller(key_id="k", tenant="t"), Unavailable("AWAY", "it went away")])

        async def unary(self, *_: object, **__: object) -> object:
            answer = next(self.answers, None)
            if isinstance(answer, Unavailable):
                raise answer
            return answer or await never.wait()

    async with AsyncClient(registry="127.0.0.1:1", api_key="") as client:
        gate = RemoteKeys(client)
        gate._transport = cast(Any, Registry())
        assert (await gate.admit(key)).key_id == "k"
        (known,) = gate._good.values()
        known.at -= 60
        assert (await gate.admit(key)).key_id == "k"
        known.lost -= 5
        assert (await gate.admit(key)).key_id == "k"
        assert gate._asking, "a newer answer is asked for beside the call"
        never.set()


async def test_forged_keys_in_any_number_keep_no_good_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_keys, "_MOST_ASKING", 4)
    good = make_key()
    never = asyncio.Event()

    class Registry:
        async def unary(self, *_: object, metadata: tuple[tuple[str, str], ...], **__: object) -> object:
            if metadata[0][1] != f"Bearer {good}":
                await never.wait()
            return registry_pb2.Caller(key_id="good", tenant="t", scopes=["read"])

    async with AsyncClient(registry="127.0.0.1:1", api_key="") as client:
        gate = RemoteKeys(client)
        gate._transport = cast(Any, Registry())
        assert (await gate.admit(f"Bearer {good}")).key_id == "good"
        forged = [asyncio.create_task(gate.admit(f"Bearer {make_key()}")) for _ in range(9)]
        done, waiting = await asyncio.wait(forged, timeout=5, return_when=asyncio.FIRST_EXCEPTION)
        assert all(isinstance(task.exception(), Exhausted) for task in done)
        gate._good[read_key(good).digest].at = time.monotonic() - 60
        assert (await gate.admit(f"Bearer {good}")).key_id == "good"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*forged, return_exceptions=True)
