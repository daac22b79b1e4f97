"""Who is let into the gateway, and what callers of one tenant see of others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from fastapi.routing import APIRoute

from lorauter.access import Scope, make_key
from lorauter.encoder import Encoder
from lorauter.errors import LorauterError, NotFound, PermissionDenied, Unauthenticated
from lorauter.gateway.v1 import gateway_pb2 as pb
from lorauter.identifiers import backend_name
from lorauter.server.access import OPEN_PATHS
from lorauter_gateway.api.http import SCOPES, create_http, scope_for
from lorauter_gateway.config import Settings
from tests.integration.gateway.tenants import POOLS, QUERY, Tenants, digest_of, tenants_standing

GENERATING = {
    "/": {"inputs": QUERY},
    "/generate": {"inputs": QUERY},
    "/generate_stream": {"inputs": QUERY},
    "/v1/completions": {"model": "auto", "prompt": QUERY},
    "/v1/chat/completions": {"model": "auto", "messages": [{"role": "user", "content": QUERY}]},
}
ROUTES = [("POST", path, body) for path, body in GENERATING.items()] + [
    ("POST", "/v1/route", {"query": QUERY}),
    ("GET", "/info", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/polite", None),
    ("GET", "/v1/backends", None),
]
OTHERS = ("b-secret", "org/b-base", "b-engine", digest_of("b", "demo", "polite"), "hidden")
"""What callers of tenant `a` must never read."""


@pytest.fixture
async def tenants(encoder: Encoder) -> AsyncIterator[Tenants]:
    async with tenants_standing(encoder) as found:
        yield found


def reason(answer: dict) -> str:
    """Returns what an error says in any dialect."""
    error = answer.get("error")
    return str(error["code"] if isinstance(error, dict) else answer.get("reason") or answer.get("error_type"))


async def test_no_route_answers_without_a_good_key(tenants: Tenants) -> None:
    for method, path, body in ROUTES:
        for key in ("", "nonsense", make_key()):
            refused = await tenants.door.send(method, path, key, body)
            assert refused.status_code == 401, (path, key)
            assert refused.headers["www-authenticate"] == "Bearer"
            if path.startswith("/v1/") and path != "/v1/route":
                assert reason(refused.json()) == "invalid_api_key"
    assert not any(engine.bodies for engine in tenants.engines.values())


async def test_each_route_asks_for_its_scope(tenants: Tenants) -> None:
    allowing = {Scope.INVOKE: {Scope.INVOKE, Scope.ADMIN}, Scope.READ: {Scope.READ, Scope.WRITE, Scope.ADMIN}}
    for held in (Scope.INVOKE, Scope.READ, Scope.WRITE, Scope.ADMIN):
        key = tenants.keys.key("a", held)
        for method, path, body in ROUTES:
            answer = await tenants.door.send(method, path, key, body)
            is_allowed = held in allowing[scope_for(method, path)]
            assert answer.status_code == (200 if is_allowed else 403), (path, held, answer.text)


def test_every_route_of_the_gateway_has_a_scope() -> None:
    app = create_http(None, Settings(router_address="x:1", access="open"), None)
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    asked = {(method, route.path) for route in routes for method in route.methods or ()}
    guarded = {path for method, path in asked if not (method == "GET" and path in OPEN_PATHS)}
    assert guarded == {*SCOPES, "/v1/models/{name:path}"}
    assert len(ROUTES) == len(guarded)


async def test_probes_and_metrics_need_no_key_and_posts_to_the_root_do(tenants: Tenants) -> None:
    for path in ("/", "/health", "/healthz", "/readyz", "/metrics"):
        assert (await tenants.door.send("GET", path, "")).status_code == 200, path
    assert (await tenants.door.send("POST", "/", "", {"inputs": QUERY})).status_code == 401
    assert (await tenants.door.send("GET", "/v1/nothing", "")).status_code == 401
    assert (await tenants.door.send("GET", "/v1/nothing", tenants.keys.key("a"))).status_code == 404


async def test_grpc_asks_for_keys_and_scopes_too(tenants: Tenants) -> None:
    async with tenants.door.client("") as client:
        with pytest.raises(Unauthenticated):
            await client.generate(QUERY)
        with pytest.raises(Unauthenticated):
            [piece async for piece in client.generate_stream(QUERY)]
    async with tenants.door.client(tenants.keys.key("a", Scope.READ)) as client:
        with pytest.raises(PermissionDenied) as refused:
            await client.generate(QUERY)
        assert refused.value.reason == "SCOPE_MISSING"
    async with tenants.door.client(tenants.keys.key("a")) as client:
        assert (await client.generate(QUERY)).served.adapters[0].digest == digest_of("a", "demo", "polite")


async def test_nothing_of_another_tenant_is_in_any_answer(tenants: Tenants) -> None:
    key = tenants.keys.key("a", Scope.ADMIN)
    for method, path, body in ROUTES:
        unknown = {**body, "lorauter": {"pool": "none"}} if isinstance(body, dict) else None
        for tried in (body, unknown):
            answer = await tenants.door.send(method, path, key, tried)
            said = answer.text + json.dumps(dict(answer.headers))
            assert not [text for text in OTHERS if text in said], (path, said)


async def test_tenants_with_pools_and_adapters_of_one_name_are_served_side_by_side(tenants: Tenants) -> None:
    for tenant in ("a", "b"):
        key = tenants.keys.key(tenant)
        for model in ("auto:demo", "polite"):
            answer = await tenants.door.ask(key, model)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-lorauter-backend"] == f"{tenant}-engine"
        sent = [body["parameters"]["adapters"][0]["id"] for body in tenants.engines[tenant, "demo"].bodies]
        assert sent == [digest_of(tenant, "demo", "polite")] * 2
    assert not tenants.engines["public", "demo"].bodies


async def test_public_pools_are_served_to_all_without_telling_where(tenants: Tenants) -> None:
    for tenant in ("a", "b", "c", "public"):
        answer = await tenants.door.ask(tenants.keys.key(tenant), "auto:commons")
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-lorauter-adapters"] == "shared;w=1.0"
        async with tenants.door.client(tenants.keys.key(tenant)) as client:
            served = (await client.generate(QUERY, pool="commons")).served
            assert bool(served.replica) == (tenant == "public")
    assert len(tenants.engines["public", "commons"].bodies) == 8


async def test_models_are_those_that_a_tenant_sees(tenants: Tenants) -> None:
    async def models(tenant: str) -> set[str]:
        answer = await tenants.door.send("GET", "/v1/models", tenants.keys.key(tenant))
        return {model["id"] for model in answer.json()["data"]}

    public = {"auto:commons", "org/public-base", "shared"}
    assert await models("a") == {"auto", "auto:demo", "org/a-base", "polite", "terse"} | public
    assert await models("c") == {"auto", "auto:demo", "hidden"} | public


async def test_what_another_tenant_has_is_answered_as_what_does_not_exist(tenants: Tenants) -> None:
    """The same words, whatever the other tenant has: pools, adapters, digests, composites, base models."""
    key = tenants.keys.key("a")
    for theirs, nobodys in (
        ("auto:b-secret-pool", "auto:c-secret-pool"),
        ("base:b-secret-pool", "base:c-secret-pool"),
        ("b-secret-adapter", "c-secret-adapter"),
        ("hidden", "absent"),
        ("org/b-base", "org/c-base"),
        (digest_of("b", "demo", "polite"), digest_of("c", "demo", "polite")),
        (backend_name(digest_of("b", "demo", "polite")), backend_name(digest_of("c", "demo", "polite"))),
        ("mix-" + "b" * 16, "mix-" + "c" * 16),
    ):
        found, absent = [await tenants.door.ask(key, model) for model in (theirs, nobodys)]
        assert found.status_code == absent.status_code == 404, found.text
        assert found.text.replace(theirs, "X").replace(theirs.partition(":")[2] or theirs, "X") == (
            absent.text.replace(nobodys, "X").replace(nobodys.partition(":")[2] or nobodys, "X")
        )
        tgi = await tenants.door.send(
            "POST", "/generate", key, {"inputs": QUERY, "parameters": {"adapter_id": theirs}}
        )
        assert tgi.status_code in (404, 422)
        listed = await tenants.door.send("GET", f"/v1/models/{theirs}", key)
        assert listed.status_code == 404
    assert not any(
        tenants.engines[tenant, pool].bodies for tenant in ("b", "public") for pool in POOLS[tenant]
    )


async def test_grpc_pins_nothing_of_another_tenant(tenants: Tenants) -> None:
    async with tenants.door.client(tenants.keys.key("a")) as client:
        for options in (
            {"pool": "b-secret-pool"},
            {"pool": "b-secret-pool", "base": True},
            {"pool": "b-secret-pool", "adapter": "b-secret-adapter"},
            {"adapter": "b-secret-adapter"},
            {"adapter": digest_of("b", "demo", "polite")},
        ):
            with pytest.raises(LorauterError) as refused:
                await client.generate(QUERY, **options)
            assert isinstance(refused.value, NotFound) or refused.value.reason.startswith("INVALID"), options
            told = [text for text in OTHERS[1:] if text in refused.value.message]
            assert not set(told) - set(options.values())  # what was asked for may come back


async def test_only_keys_for_any_tenant_act_for_others(tenants: Tenants) -> None:
    own, any_tenant = tenants.keys.key("a"), tenants.keys.key("operators", any_tenant=True)
    body = {"model": "auto:demo", "prompt": QUERY}
    for tenant in ("b", "public", "nobody"):
        headers = {"x-lorauter-tenant": tenant}
        refused = await tenants.door.send("POST", "/v1/completions", own, body, **headers)
        assert (refused.status_code, reason(refused.json())) == (403, "tenant_not_allowed")
        async with tenants.door.client(own, tenant=tenant) as client:
            with pytest.raises(PermissionDenied):
                await client.generate(QUERY, pool="demo")
    headers = {"x-lorauter-tenant": "b"}
    served = await tenants.door.send("POST", "/v1/completions", any_tenant, body, **headers)
    assert served.headers["x-lorauter-backend"] == "b-engine"


async def test_routing_in_grpc_cannot_name_another_tenant(tenants: Tenants) -> None:
    path = "/lorauter.gateway.v1.GatewayService/Generate"
    request = pb.GenerateRequest(prompt=QUERY, pool="demo")
    request.routing.tenant = "b"
    for key, allowed in ((tenants.keys.key("a"), False), (tenants.keys.key("x", any_tenant=True), True)):
        async with tenants.door.client(key) as client:
            transport = client._gateway
            if allowed:
                answer = await transport.unary(path, request, pb.GenerateResponse, idempotent=False)
                assert answer.served.backend_id == "b-engine"
            else:
                with pytest.raises(PermissionDenied):
                    await transport.unary(path, request, pb.GenerateResponse, idempotent=False)


async def test_a_public_backends_state_is_its_owners_to_see(tenants: Tenants) -> None:
    async def seen(tenant: str) -> set[str]:
        answer = await tenants.door.send("GET", "/v1/backends", tenants.keys.key(tenant, Scope.READ))
        return {replica["backend_id"] for replica in answer.json()["replicas"]}

    assert [await seen(tenant) for tenant in ("a", "c", "public")] == [{"a-engine"}, set(), {"public-engine"}]


async def test_no_header_of_a_caller_reaches_a_backend(tenants: Tenants) -> None:
    key = tenants.keys.key("a")
    headers = {"x-api-key": "caller's own", "cookie": "c=1", "x-lorauter-tenant": "a", "x-smuggled": "1"}
    for path, body in GENERATING.items():
        assert (await tenants.door.send("POST", path, key, body, **headers)).status_code == 200
    engine = tenants.engines["a", "demo"]
    assert len(engine.headers) == len(GENERATING)
    for sent in engine.headers:
        assert not {"authorization", "x-api-key", "cookie", "x-lorauter-tenant", "x-smuggled"} & sent.keys()
        assert key not in json.dumps(sent)
    assert key not in json.dumps(engine.bodies)


async def test_a_full_gateway_tells_nothing_to_those_without_a_key(encoder: Encoder) -> None:
    async with tenants_standing(encoder, max_concurrent_requests=1) as tenants:
        engine = tenants.engines["b", "demo"]
        engine.script.append("endless")
        async with tenants.door.client(tenants.keys.key("b")) as client:
            stream = client.generate_stream(QUERY, pool="demo")
            await anext(stream)
            assert (await tenants.door.ask("")).status_code == 401
            full = await tenants.door.ask(tenants.keys.key("a"))
            assert (full.status_code, reason(full.json())) == (429, "gateway_full")
            await stream.aclose()
