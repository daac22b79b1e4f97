"""API keys in the registry: made, told once, replaced, revoked; who changed what is written down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text
from structlog.testing import capture_logs

from lorauter import AsyncClient
from lorauter.access import acting, make_key, open_caller, read_key
from lorauter.client import NO_RETRY
from lorauter.errors import (
    FailedPrecondition,
    InvalidArgument,
    LorauterError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from lorauter.server import remote_keys
from lorauter.server.remote_keys import RemoteKeys
from lorauter_registry.config import Settings
from lorauter_registry.domain.adapter_requests import RegisterAdapter
from lorauter_registry.domain.requests import CreatePool, RegisterBackend
from lorauter_registry.main import assembled
from lorauter_suite.embedded.ports import free_port

FIRST = make_key()
DEADLINE_SECONDS = 20.0
MODULE = {"name": "model.layers.0.self_attn.q_proj", "in_features": 8, "out_features": 8}


@dataclass
class Kept:
    """A registry that asks for keys."""

    address: str
    http: httpx.AsyncClient
    engine: Any
    settings: dict[str, Any]

    def client(self, key: str, tenant: str = "") -> AsyncClient:
        return AsyncClient(registry=self.address, api_key=key, tenant=tenant, retry=NO_RETRY)

    async def make(self, scopes: list[str], by: str = FIRST, **fields: Any) -> Any:
        async with self.client(by) as client:
            return await client.registry.create_api_key(scopes=scopes, **fields)

    async def who(self, key: str) -> str:
        """Returns the tenant of a key, or why it is refused."""
        try:
            async with self.client(key) as client:
                return (await client.registry.who_am_i()).tenant
        except Unauthenticated as error:
            return error.reason


@pytest.fixture
async def kept(postgres_url: str, tmp_path: Path) -> AsyncIterator[Kept]:
    settings = {
        "database_url": postgres_url,
        "redis_url": "redis://127.0.0.1:1/0",
        "adapter_store": tmp_path / "store",
        "bootstrap_key": FIRST,
    }
    with assembled(Settings.model_validate(settings)) as parts:
        port = await parts.grpc_server.start("127.0.0.1", 0)
        transport = httpx.ASGITransport(parts.rest, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://registry") as http:
            yield Kept(f"127.0.0.1:{port}", http, parts.registry.context.engine, settings)
        await parts.grpc_server.stop(0)


async def test_key_is_told_once_and_nowhere_else(kept: Kept) -> None:
    made = await kept.make(["read", "read"], description="d", request_id="r")
    again = await kept.make(["read", "read"], description="d", request_id="r")
    assert (again.key, again.secret) == (made.key, "")
    assert list(made.key.scopes) == ["read"]
    assert await kept.who(made.secret) == "default"
    secret = made.secret.split("_", 2)[2]
    with kept.engine.connect() as connection:
        for table in ("api_key", "idempotent_write", "audit_entry"):
            rows = connection.execute(text(f"SELECT to_jsonb(t) FROM {table} t")).scalars().all()
            assert rows
            assert secret not in repr(rows)
    async with kept.client(FIRST) as client:
        listed = [key async for key in client.registry.list_api_keys()]
    assert {key.id for key in listed} == {made.key.id, FIRST.split("_")[1]}
    assert secret not in repr(listed)


async def test_rest_makes_replaces_and_revokes_keys_as_grpc_does(kept: Kept) -> None:
    headers = {"authorization": f"Bearer {FIRST}"}
    made = await kept.http.post("/v1/keys", json={"scopes": ["write"], "tenant": "t"}, headers=headers)
    assert made.status_code == 201, made.text
    key = made.json()["key"]["id"]
    assert await kept.who(made.json()["secret"]) == "t"
    own = {"authorization": headers["authorization"], "x-lorauter-tenant": "t"}
    rotated = await kept.http.post(f"/v1/keys/{key}/rotate", json={"overlap": "0s"}, headers=own)
    assert rotated.status_code == 201, rotated.text
    assert await kept.who(made.json()["secret"]) == "KEY_EXPIRED"
    assert await kept.who(rotated.json()["secret"]) == "t"
    revoked = await kept.http.post(f"/v1/keys/{rotated.json()['key']['id']}/revoke", headers=own)
    assert revoked.json()["revoke_time"]
    assert await kept.who(rotated.json()["secret"]) == "KEY_REVOKED"
    assert (await kept.http.get("/v1/keys", headers=own)).json()["keys"][0]["id"] != key


async def test_old_key_is_good_for_the_overlap_and_the_new_one_as_long_as_the_old_was(kept: Kept) -> None:
    ends = Timestamp()
    ends.FromDatetime(datetime.now(UTC) + timedelta(days=10))
    made = await kept.make(["admin"], expire_time=ends, requests_per_minute=7)
    async with kept.client(made.secret) as client:
        new = await client.registry.rotate_api_key(id=made.key.id)
        with pytest.raises(FailedPrecondition, match=new.key.id) as refused:
            await client.registry.rotate_api_key(id=made.key.id)
        assert refused.value.reason == "KEY_ROTATED"
        listed = {key.id: key async for key in client.registry.list_api_keys()}
    old = listed[made.key.id]
    assert old.successor == new.key.id
    assert old.expire_time.ToDatetime(UTC) - new.key.create_time.ToDatetime(UTC) == timedelta(hours=24)
    lasts = new.key.expire_time.ToDatetime(UTC) - new.key.create_time.ToDatetime(UTC)
    assert abs(lasts - timedelta(days=10)) < timedelta(minutes=1)
    assert new.key.requests_per_minute == 7
    assert await kept.who(made.secret) == await kept.who(new.secret) == "default"


async def test_admins_of_one_tenant_get_no_key_for_others(kept: Kept) -> None:
    admin = (await kept.make(["admin"])).secret
    other = await kept.make(["read"], tenant="other")
    async with kept.client(admin) as client:
        for fields in ({"tenant": "other"}, {"any_tenant": True}):
            with pytest.raises(PermissionDenied) as refused:
                await client.registry.create_api_key(scopes=["read"], **fields)
            assert refused.value.reason == "TENANT_NOT_ALLOWED"
        for call in (client.registry.rotate_api_key, client.registry.revoke_api_key):
            with pytest.raises(NotFound):
                await call(id=other.key.id)
            with pytest.raises(PermissionDenied):  # it is of this tenant, but may act for all
                await call(id=FIRST.split("_")[1])
    assert await kept.who(other.secret) == "other"
    assert await kept.who(FIRST) == "default"


async def test_key_is_refused_when_it_would_have_expired_or_allows_nothing(kept: Kept) -> None:
    past = Timestamp(seconds=1)
    fields: dict[str, Any]
    for fields in ({"scopes": ["read"], "expire_time": past}, {"scopes": []}, {"scopes": ["any"]}):
        with pytest.raises(InvalidArgument):
            await kept.make(**fields)


async def test_writes_are_written_down_with_who_made_them(kept: Kept) -> None:
    made = await kept.make(["admin"], tenant="t")
    async with kept.client(made.secret) as client:
        pool: dict[str, Any] = {"id": "p", "base_model": "b"}
        first = await client.registry.create_pool(**pool, request_id="1")
        await client.registry.create_pool(**pool, request_id="1")
        with pytest.raises(LorauterError):
            await client.registry.create_pool(**pool)
        await client.registry.create_task(id="t1", pool="p", metric="exact_match")
        entries = [entry async for entry in client.registry.list_audit_entries()]
        by_key = [
            entry async for entry in client.registry.list_audit_entries(key_id=made.key.id, page_size=1)
        ]
    assert [(entry.method, entry.resource) for entry in entries] == [
        ("CreateTask", "t1"),
        ("CreatePool", "p"),
        ("CreateApiKey", made.key.id),
    ]
    assert (entries[1].request_id, entries[1].generation) == ("1", first.generation)
    assert (entries[2].key_id, entries[2].generation) == (FIRST.split("_")[1], "")
    assert by_key == entries[:2]


async def test_each_tenant_registers_from_its_own_folder_and_on_allowed_hosts(
    kept: Kept, tiny_pools: Any, tmp_path: Path
) -> None:
    roots, hosts = str(tmp_path / "incoming" / "{tenant}"), "inference.example, other.example"
    settings = {**kept.settings, "adapter_roots": roots, "backend_hosts": hosts}
    folders = {name: tiny_pools(tmp_path / "incoming" / name).adapter("x") for name in ("t", "u")}
    pool: dict[str, Any] = {"id": "p", "base_model": "tiny/base", "modules": [MODULE]}
    with assembled(Settings.model_validate(settings)) as parts, acting(open_caller("t")):
        parts.registry.create_pool(CreatePool.model_validate(pool))
        parts.registry.register_adapter(RegisterAdapter(id="x", pool="p", path=str(folders["t"])))
        for path in (folders["u"], tmp_path / "incoming" / "t" / ".." / "u" / "x"):
            with pytest.raises(InvalidArgument) as refused:
                parts.registry.register_adapter(RegisterAdapter(id="y", pool="p", path=str(path)))
            assert refused.value.reason == "PATH_NOT_ALLOWED"
        backend = {"id": "b", "pool": "p", "kind": "TGI", "url": "http://gpu.inference.example:80"}
        parts.registry.register_backend(RegisterBackend.model_validate(backend))
        backend["url"] = "http://evil-inference.example:80"
        with pytest.raises(PermissionDenied) as denied:
            parts.registry.register_backend(RegisterBackend.model_validate(backend))
        assert denied.value.reason == "BACKEND_HOST_NOT_ALLOWED"


async def test_denied_calls_are_in_the_audit_log(kept: Kept) -> None:
    reader = await kept.make(["read"])
    headers = {"authorization": f"Bearer {reader.secret}"}
    with capture_logs() as logs:
        async with kept.client(reader.secret) as client:
            with pytest.raises(PermissionDenied):
                await client.registry.create_pool(id="p", base_model="b")
        body = {"id": "p", "base_model": "b"}
        assert (await kept.http.post("/v1/pools", headers=headers, json=body)).status_code == 403
        assert (await kept.http.get("/v1/pools")).status_code == 401
        headers["x-lorauter-tenant"] = "other"
        assert (await kept.http.get("/v1/pools", headers=headers)).status_code == 403
    denied = [(log["reason"], log["key_id"]) for log in logs if log["event"] == "audit.denied"]
    assert denied == [
        ("SCOPE_MISSING", reader.key.id),
        ("SCOPE_MISSING", reader.key.id),
        ("KEY_MISSING", ""),
        ("TENANT_NOT_ALLOWED", reader.key.id),
    ]
    assert reader.secret not in repr(logs)


@pytest.mark.parametrize("other", [make_key, lambda: FIRST[:-1] + ("A" if FIRST[-1] != "A" else "B")])
async def test_unknown_key_is_refused_like_a_wrong_secret(kept: Kept, other: Any) -> None:
    assert await kept.who(other()) == "KEY_INVALID"


async def test_bootstrap_key_stays_revoked_and_ids_are_not_shared(kept: Kept, postgres_url: str) -> None:
    async with kept.client(FIRST) as client:
        await client.registry.revoke_api_key(id=FIRST.split("_")[1])
    assert await kept.who(FIRST) == "KEY_REVOKED"
    with assembled(Settings.model_validate(kept.settings)):
        assert await kept.who(FIRST) == "KEY_REVOKED"
    forged = "_".join([*FIRST.split("_")[:2], make_key().split("_", 2)[2]])
    assert read_key(forged)
    with (
        pytest.raises(FailedPrecondition, match="LORAUTER_BOOTSTRAP_KEY"),
        assembled(Settings.model_validate({**kept.settings, "bootstrap_key": forged})),
    ):
        pass


async def test_other_services_hear_of_a_revoked_key_and_keep_good_ones_while_it_is_away(kept: Kept) -> None:
    good, bad = await kept.make(["invoke"]), await kept.make(["invoke"])
    async with AsyncClient(registry=kept.address, api_key="", retry=NO_RETRY) as asking:
        gate = RemoteKeys(asking)
        for made in (good, bad):
            assert (await gate.admit(f"Bearer {made.secret}")).key_id == made.key.id
        async with kept.client(FIRST) as client:
            await client.registry.revoke_api_key(id=bad.key.id)
        assert await _refusal(gate, bad.secret) == "KEY_REVOKED"
        with pytest.raises(Unauthenticated):
            await gate.admit(f"Bearer {make_key()}")
        kept.engine.dispose()
    async with AsyncClient(registry="127.0.0.1:1", api_key="", retry=NO_RETRY) as nowhere:
        gate._transport = nowhere.registry.transport
        gate._good[read_key(good.secret).digest].at -= 60  # as if it was asked a minute ago
        assert (await gate.admit(f"Bearer {good.secret}")).key_id == good.key.id
        with pytest.raises(Unavailable) as refused, capture_logs() as logs:
            await gate.admit(f"Bearer {make_key()}")
        assert refused.value.reason == "KEYS_UNAVAILABLE"
        assert [(log["event"], log["reason"]) for log in logs] == [
            ("access.keys.unavailable", "DEADLINE_EXCEEDED")
        ]


async def test_call_with_a_new_key_waits_for_a_registry_that_starts(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_keys, "_TIMEOUT_SECONDS", 60.0)
    made, port = await kept.make(["invoke"]), free_port()
    async with AsyncClient(registry=f"127.0.0.1:{port}", api_key="", retry=NO_RETRY) as asking:
        admitted = asyncio.create_task(RemoteKeys(asking).admit(f"Bearer {made.secret}"))
        _, waiting = await asyncio.wait({admitted}, timeout=0.5)  # it has met that nobody listens
        assert waiting
        with assembled(Settings.model_validate(kept.settings)) as starting:
            await starting.grpc_server.start("127.0.0.1", port)
            assert (await admitted).key_id == made.key.id
            await starting.grpc_server.stop(0)


async def _refusal(gate: RemoteKeys, key: str) -> str:
    """Returns why a key is refused, once it is."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            await gate.admit(f"Bearer {key}")
        except Unauthenticated as error:
            return error.reason
        await asyncio.sleep(0.05)
    return "not refused in time"
