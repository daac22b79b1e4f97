"""A key of one tenant reaches nothing of another: every RPC and every route, on real parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import text

from lorauter.access import Scope, is_public, make_key, scope_of
from lorauter.server.access import OPEN_PATHS
from lorauter_registry.api.calls import rpc_of
from tests.security.asking import METHODS, Outcome, ask, call, filled
from tests.security.tenancy import NOBODYS, OURS, QUERY, SECRET, THEIRS, Stage
from tests.security.tenant_cases import GATEWAY, PLACES, REST, RPCS

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRIED = [(rpc, number) for rpc, cases in RPCS.items() for number in range(len(cases))]
ASKED = [
    (service, method, path, number)
    for service, table in (("registry", REST), ("gateway", GATEWAY))
    for (method, path), cases in table.items()
    for number in range(len(cases))
]
MAKING = ("Create", "Register")
MADE = (
    ("POST", "/v1/pools"),
    ("POST", "/v1/tasks"),
    ("POST", "/v1/adapters"),
    ("POST", "/v1/backends"),
    ("PUT", "/v1/backends/{backend_id}"),
    ("POST", "/v1/keys"),
)
"""What makes something under the others' names, in our own tenant: tried last."""
READ = [rpc for rpc, (_, method) in METHODS.items() if scope_of(method.containing_service, rpc) is Scope.READ]
WITHOUT_NAMES = {"GetGeneration", "ListValidationExamples"}
LISTED = [rpc for rpc in READ if METHODS[rpc][0] == "registry" and rpc != "GetGeneration"] + ["ListApiKeys"]
EMPTY: dict[str, Any] = {"pieces": [{}]}
OTHERS = ("bravo", SECRET + " of " + THEIRS)
"""What is in no answer to us, once the names that we sent are taken out of it."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(stage: Stage) -> Stage:
    """The stage, and what the other tenant read of its own at first."""
    stage.before = await everything(stage, THEIRS)
    return stage


async def everything(stage: Stage, tenant: str) -> list[Outcome]:
    """Returns all that a tenant reads of its own in the registry."""
    names, key = stage.names[tenant], stage.keys[tenant]
    return [await call(stage, rpc, filled(RPCS[rpc][0], names), key) for rpc in LISTED]


def is_same(stage: Stage, tried: Outcome, without: Outcome) -> None:
    """Fails if an answer about their things differs from the one about things that are not there."""
    theirs, nobodys = stage.names[THEIRS], stage.names[NOBODYS]
    seen, expected = tried.as_of(theirs, nobodys), without.as_of(nobodys, nobodys)
    assert seen[0] == expected[0]
    assert seen[1].splitlines() == expected[1].splitlines()
    assert not [text for text in OTHERS if text in seen[1]]


@pytest.mark.parametrize(("rpc", "number"), [one for one in TRIED if not one[0].startswith(MAKING)])
async def test_call_answers_as_if_the_others_things_were_not_there(
    stage: Stage, rpc: str, number: int
) -> None:
    template = RPCS[rpc][number]
    tried, without = [
        await call(stage, rpc, filled(template, stage.names[tenant]), stage.keys[OURS])
        for tenant in (THEIRS, NOBODYS)
    ]
    is_same(stage, tried, without)


@pytest.mark.parametrize(
    ("service", "method", "path", "number"), [one for one in ASKED if one[1:3] not in MADE]
)
async def test_route_answers_as_if_the_others_things_were_not_there(
    stage: Stage, service: str, method: str, path: str, number: int
) -> None:
    tried, without = [
        await asked(stage, (service, method, path, number), tenant, stage.keys[OURS])
        for tenant in (THEIRS, NOBODYS)
    ]
    is_same(stage, tried, without)


async def test_names_of_others_are_free_for_things_of_ones_own(stage: Stage) -> None:
    for rpc, number in TRIED:
        if rpc.startswith(MAKING):
            await test_call_answers_as_if_the_others_things_were_not_there(stage, rpc, number)
    for service, method, path, number in ASKED:
        if (method, path) in MADE:
            await test_route_answers_as_if_the_others_things_were_not_there(
                stage, service, method, path, number
            )
    answer = await call(stage, "GetPool", {"id": stage.names[THEIRS].pool}, stage.keys[OURS])
    assert answer.reason == "OK"
    assert SECRET not in answer.said


@pytest.mark.parametrize("rpc", READ)
async def test_their_own_key_reads_what_ours_does_not(stage: Stage, rpc: str) -> None:
    answer = await call(stage, rpc, filled(RPCS[rpc][0], stage.names[THEIRS]), stage.keys[THEIRS])
    assert answer.reason == "OK", answer.said
    assert "bravo" in answer.said or stage.names[THEIRS].key in answer.said or rpc in WITHOUT_NAMES


async def test_nobody_acts_for_a_tenant_by_naming_it(stage: Stage) -> None:
    for rpc, cases in RPCS.items():
        fields = filled(cases[0], stage.names[THEIRS])
        answer = await call(stage, rpc, fields, stage.keys[OURS], x_lorauter_tenant=THEIRS)
        assert answer.reason == "TENANT_NOT_ALLOWED", rpc
    for place in ASKED:
        answer = await asked(stage, place, THEIRS, stage.keys[OURS], x_lorauter_tenant=THEIRS)
        assert answer.reason != "OK", place
        assert "may not act for another tenant" in answer.said, place


async def test_guests_of_the_public_tenant_read_its_pools_and_change_nothing(stage: Stage) -> None:
    for rpc, (service, method) in METHODS.items():
        fields = filled(RPCS[rpc][0], stage.names["public"])
        answer = await call(stage, rpc, fields, stage.keys[OURS], x_lorauter_tenant="public")
        asks_any = scope_of(method.containing_service, rpc) is Scope.ANY
        is_open = is_public(method.containing_service, rpc) or asks_any
        assert answer.reason == ("OK" if is_open else "TENANT_NOT_ALLOWED"), (service, rpc, answer.said)


async def test_what_is_public_is_routed_to_and_served_to_every_tenant(stage: Stage) -> None:
    pool = stage.names["public"].pool
    for tenant in (OURS, THEIRS):
        decided = await call(stage, "Route", {"query": QUERY, "pool": pool}, stage.keys[tenant])
        assert decided.reason == "OK", decided.said
        assert "public-adapter" in decided.said


async def test_their_things_are_as_they_were(stage: Stage) -> None:
    assert await everything(stage, THEIRS) == stage.before


def test_every_rpc_and_every_route_has_a_case(stage: Stage) -> None:
    assert set(RPCS) == set(METHODS)
    for service, table in (("registry", REST), ("gateway", GATEWAY)):
        app: Any = stage.apps[service]
        routes = {(method, route.path) for route in api_routes(app.routes) for method in route.methods}
        assert {place for place in routes if place[0] != "GET" or place[1] not in OPEN_PATHS} == set(table)


ASKED_SCOPES = {
    "admin": "CreatePool UpdatePool RegisterBackend DrainBackend PublishPoolManifest CreateApiKey "
    "ListApiKeys RotateApiKey RevokeApiKey ListAuditEntries ExportRegistry ImportRegistry",
    "write": "CreateTask UpdateTask DeleteTask PutValidationSet RegisterAdapter SetAdapterAlias "
    "UpdateAdapter RetireAdapter DisableAdapter ImportAffinities StartMatching CancelOperation "
    "ActivateProfile ProposePoolManifest",
    "read": "GetPool ListPools ListBackends GetTask ListTasks ListValidationExamples GetAdapter ListAdapters "
    "ListAdapterVersions ListAffinities GetOperation ListOperations WatchOperation ListProfiles GetDecision "
    "ListDecisions ListPoolManifests GetGeneration Replay GetSnapshot ResolveAdapter ListServableAdapters",
    "invoke": "Route RouteBatch Generate GenerateStream",
    "any": "WhoAmI",
}
"""What each RPC asks for, said once more: who changes it there should mean it."""
INCLUDED = {
    "admin": {"admin", "write", "read", "invoke", "any"},
    "write": {"write", "read", "any"},
    "read": {"read", "any"},
    "invoke": {"invoke", "any"},
}
OF_RPC = {rpc: scope for scope, rpcs in ASKED_SCOPES.items() for rpc in rpcs.split()}
OF_ENDPOINT = {"remove_adapter_alias": "SetAdapterAlias", "put_backend": "RegisterBackend"}


def scope_of_route(stage: Stage, service: str, method: str, path: str) -> str:
    """Returns what a route asks for: over REST as the RPC of its endpoint's name."""
    if service == "gateway":
        return "read" if path == "/v1/backends" else "invoke"
    app: Any = stage.apps[service]
    (found,) = (one for one in api_routes(app.routes) if one.path == path and method in one.methods)
    return OF_RPC[OF_ENDPOINT.get(found.name) or rpc_of(found.name)]


@pytest.mark.parametrize("held", INCLUDED)
async def test_key_makes_the_calls_of_its_scope_and_no_others(stage: Stage, held: str) -> None:
    assert set(OF_RPC) == set(METHODS)
    key = (await stage.make_key([held], OURS)).secret
    for rpc, asked_scope in OF_RPC.items():
        answer = await call(stage, rpc, EMPTY, key)
        assert (answer.reason == "SCOPE_MISSING") == (asked_scope not in INCLUDED[held]), (rpc, answer)
    for place in ASKED:
        asked_scope = scope_of_route(stage, *place[:3])
        answer = await asked(stage, place, NOBODYS, key)
        missing = "SCOPE_MISSING" in answer.said or "needs a key with scope" in answer.said
        assert missing == (asked_scope not in INCLUDED[held]), (place, answer)


async def test_no_call_is_answered_without_a_good_key(stage: Stage) -> None:
    for key, reason in (await bad_keys(stage)).items():
        for rpc in METHODS:
            assert (await call(stage, rpc, EMPTY, key)).reason == reason, rpc
        for place in ASKED:
            answer = await asked(stage, place, NOBODYS, key)
            assert answer.status == 401, (place, answer)


async def test_both_keys_are_good_while_a_rotation_overlaps(stage: Stage) -> None:
    old = await stage.make_key(["read"], OURS)
    new = await rotated(stage, old.key.id, 3600)
    for key in (old.secret, new.secret):
        for rpc in ("ListPools", "GetSnapshot"):
            assert (await call(stage, rpc, {}, key)).reason == "OK"


async def bad_keys(stage: Stage) -> dict[str, str]:
    """Returns keys that are no good, and why."""
    expired, revoked, replaced = [await stage.make_key(["admin"], OURS) for _ in range(3)]
    with stage.engine.begin() as connection:
        statement = "UPDATE api_key SET expire_time = clock_timestamp() WHERE id = :id"
        connection.execute(text(statement), {"id": expired.key.id})
    await call(stage, "RevokeApiKey", {"id": revoked.key.id}, stage.keys[OURS])
    await rotated(stage, replaced.key.id, 0)
    return {
        "": "KEY_MISSING",
        "sk-other": "KEY_MALFORMED",
        make_key(): "KEY_INVALID",
        expired.secret: "KEY_EXPIRED",
        revoked.secret: "KEY_REVOKED",
        replaced.secret: "KEY_EXPIRED",
    }


async def rotated(stage: Stage, key_id: str, seconds: int) -> Any:
    async with stage.client(OURS) as client:
        return await client.registry.rotate_api_key(id=key_id, overlap=Duration(seconds=seconds))


def api_routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    """Yields all routes, those of included routers too."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from api_routes(route.original_router.routes)


async def asked(
    stage: Stage, place: tuple[str, str, str, int], tenant: str, key: str, **sent: str
) -> Outcome:
    """Asks over HTTP, with the names of a tenant's things in path, query and body."""
    service, method, path, number = place
    table, http = (REST, stage.rest) if service == "registry" else (GATEWAY, stage.http)
    body, query = table[method, path][number]
    for parameter, word in PLACES.items():
        path = path.replace(f"{{{parameter}}}", word)
    names = stage.names[tenant]
    return await ask(
        http, method, filled(path, names), key, filled(body, names), filled(query, names), **sent
    )
