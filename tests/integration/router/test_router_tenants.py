"""One router serves many tenants: each sees its own pools and the public ones, and nothing of others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import redis
from prometheus_client import REGISTRY

from lorauter import AsyncClient
from lorauter.access import PUBLIC_TENANT, make_key
from lorauter.client import NO_RETRY
from lorauter.decisions import RecordedDecision, stream_of
from lorauter.index import MemoryIndex
from lorauter.router.v1 import router_pb2 as pb
from lorauter.routing.model import Backend, Snapshot
from lorauter_registry.config import Settings as RegistrySettings
from lorauter_registry.main import assembled

QUERIES = ("what is 8 plus 5", "the capital of Spain", "a dull film", "zebras graze on the moors")
OURS, THEIRS = "alpha", "bravo"


@pytest.fixture
def of(lab: Any) -> Callable[..., Snapshot]:
    """Makes a tenant's snapshot in which all that can differ names the tenant."""

    def make(tenant: str, generation: int, pools: Sequence[str] = ("p",), tasks: int = 3) -> Snapshot:
        made = lab.snapshot(generation, pools)
        marked = {
            name: replace(
                pool,
                base_model=f"base-of-{tenant}",
                tasks=pool.tasks[:tasks],
                adapters=tuple(replace(each, digest=f"sha256:{tenant}") for each in pool.adapters),
                backends=(Backend("engine", "engine", f"http://{tenant}:1", False),),
            )
            for name, pool in made.pools.items()
        }
        return replace(made, tenant=tenant, pools=marked)

    return make


def plain(answer: pb.RouteResponse) -> bytes:
    """An answer without what differs from call to call."""
    kept = pb.RouteResponse()
    kept.CopyFrom(answer)
    kept.decision_id = ""
    kept.ClearField("timings")
    return kept.SerializeToString(deterministic=True)


async def everything(router: Any, tenant: str) -> list[bytes]:
    """All that a tenant can be told, but for what differs from call to call."""
    found = [plain(await router.route(query=query, tenant=tenant, explain=True)) for query in QUERIES]
    batch = pb.RouteBatchRequest(requests=[pb.RouteRequest(query=query, tenant=tenant) for query in QUERIES])
    found += [plain(each) for each in (await router.stub.RouteBatch(batch, timeout=30)).responses]
    acting = [("x-lorauter-tenant", tenant)]
    for answer in (
        await router.stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=30, metadata=acting),
        await router.stub.ResolveAdapter(
            pb.ResolveAdapterRequest(adapter="atlas", tenant=tenant), timeout=10
        ),
        await router.stub.ListServableAdapters(pb.ListServableAdaptersRequest(tenant=tenant), timeout=30),
    ):
        found.append(answer.SerializeToString(deterministic=True))
    for pool in ("nowhere", f"{THEIRS}-only"):
        error = await router.refusal(router.route(pool=pool, tenant=tenant))
        found.append(f"{error.reason} {error.message} {error.metadata}".replace(pool, "").encode())
    return found


async def test_nothing_that_others_do_changes_a_byte_of_a_tenants_answers(lab: Any, of: Any) -> None:
    index = MemoryIndex()
    index.publish(of(OURS, 3), [])
    async with lab.router_on(index) as router:
        alone = await everything(router, OURS)
        for generation, tasks in ((3, 3), (900, 1), (901, 2)):
            theirs = of(THEIRS, generation, ("p", f"{THEIRS}-only"), tasks)
            index.publish(theirs, [])
            await lab.eventually(lambda: THEIRS in router.follower.current().served)
            await lab.eventually(lambda at=generation: router.served(THEIRS).snapshot.generation == at)
            await router.route(query=QUERIES[0], tenant=THEIRS, pool="p")
        index.publish(replace(theirs, generation=902, encoder_digest="sha256:other"), [])
        await lab.eventually(lambda: router.served(THEIRS).stale)
        assert await everything(router, OURS) == alone
        assert not any(THEIRS.encode() in answer for answer in alone)
        assert (await router.route(tenant=THEIRS, pool="p")).stale
        assert not (await router.route(tenant=OURS)).stale


async def test_own_pools_come_before_public_ones_and_answers_say_whose_it_was(lab: Any, of: Any) -> None:
    index = MemoryIndex()
    for snapshot in (of(OURS, 3), of(PUBLIC_TENANT, 40, ("p", "q")), of(THEIRS, 5, ("mine",))):
        index.publish(snapshot, [])
    async with lab.router_on(index) as router:
        for pool, tenant, generation in (
            ("", OURS, 3),
            ("p", OURS, 3),
            ("q", PUBLIC_TENANT, 40),
        ):
            answer = await router.route(pool=pool, tenant=OURS)
            assert (answer.tenant, answer.pool) == (tenant, pool or "p")
            assert answer.generation == lab.token(generation, tenant)
            assert {each.digest for each in answer.adapters} == {f"sha256:{tenant}"}
            pin = pb.ResolveAdapterRequest(pool=pool, adapter="atlas", tenant=OURS)
            resolved = await router.stub.ResolveAdapter(pin, timeout=30)
            assert (resolved.tenant, resolved.digest) == (tenant, f"sha256:{tenant}")
            assert resolved.generation == answer.generation
        only_public = await router.route(pool="p", tenant="somebody-new")
        assert only_public.tenant == PUBLIC_TENANT
        error = await router.refusal(router.route(pool="mine", tenant=OURS))
        assert (error.reason, error.metadata["known"]) == ("UNKNOWN_POOL", "p, q")
        page = pb.ListServableAdaptersRequest(tenant=OURS)
        listed = (await router.stub.ListServableAdapters(page, timeout=30)).adapters
        assert {(each.tenant, each.pool) for each in listed} == {(OURS, "p"), (PUBLIC_TENANT, "q")}


async def test_a_batch_may_be_of_several_tenants_each_on_one_generation(lab: Any, of: Any) -> None:
    index = MemoryIndex()
    for snapshot in (of(OURS, 3), of(PUBLIC_TENANT, 40, ("q",)), of(THEIRS, 5)):
        index.publish(snapshot, [])
    asked = [(OURS, "p"), (THEIRS, ""), (OURS, "q"), (THEIRS, "p"), (THEIRS, "q")]
    async with lab.router_on(index) as router:
        before = counted(f"{THEIRS}/p")
        batch = [pb.RouteRequest(query=lab.query, tenant=tenant, pool=pool) for tenant, pool in asked]
        answers = (await router.stub.RouteBatch(pb.RouteBatchRequest(requests=batch), timeout=30)).responses
    assert [(each.tenant, each.generation) for each in answers] == [
        (OURS, lab.token(3, OURS)),
        (THEIRS, lab.token(5, THEIRS)),
        (PUBLIC_TENANT, lab.token(40, PUBLIC_TENANT)),
        (THEIRS, lab.token(5, THEIRS)),
        (PUBLIC_TENANT, lab.token(40, PUBLIC_TENANT)),
    ]
    assert counted(f"{THEIRS}/p") == before + 2


def counted(pool: str) -> float:
    labels = {"pool": pool, "strategy": "default", "action": "ADAPTERS"}
    return REGISTRY.get_sample_value("lorauter_router_decisions_total", labels) or 0.0


async def test_generations_are_awaited_of_the_tenant_whose_pool_it_is(lab: Any, of: Any) -> None:
    index = MemoryIndex()
    for snapshot in (of(OURS, 3), of(PUBLIC_TENANT, 40, ("q",)), of(THEIRS, 5)):
        index.publish(snapshot, [])
    async with lab.router_on(index) as router:

        async def asked(pool: str, generation: int, tenant: str) -> Any:
            token = lab.token(generation, tenant)
            return await router.route(pool=pool, tenant=OURS, min_generation=token, seconds=3)

        assert (await asked("q", 40, PUBLIC_TENANT)).generation == lab.token(40, PUBLIC_TENANT)
        for pool, generation, tenant in (("p", 5, THEIRS), ("q", 3, OURS), ("p", 40, PUBLIC_TENANT)):
            error = await router.refusal(asked(pool, generation, tenant))
            assert error.reason == "FOREIGN_GENERATION"
        index.publish(of(THEIRS, 100), [])
        error = await router.refusal(asked("p", 4, OURS))
        assert (error.reason, error.metadata["current"]) == ("GENERATION_NOT_REACHED", lab.token(3, OURS))
        # a pool that comes with the generation is looked for in it
        index.publish(of(OURS, 4, ("p", "new")), [])
        assert (await asked("new", 4, OURS)).tenant == OURS


async def test_nobody_learns_from_an_answer_what_another_tenant_asked(lab: Any, of: Any) -> None:
    index = MemoryIndex()
    index.publish(of(PUBLIC_TENANT, 40, ("q",)), [])
    async with lab.router_on(index) as router:
        for tenant, cached in ((OURS, False), (OURS, True), (THEIRS, False), (THEIRS, True)):
            timings = (await router.route(tenant=tenant, query="a secret film")).timings
            assert (timings.cached, timings.encode_ms == 0) == (cached, cached)
    async with lab.router_on(index, decision_cache=0) as router:
        for tenant, cached in ((OURS, False), (OURS, True), (THEIRS, False)):
            assert (await router.route(tenant=tenant, query="a secret film")).timings.cached == cached


async def test_decisions_in_public_pools_are_recorded_with_those_of_who_asked(
    lab: Any, of: Any, redis_url: str
) -> None:
    index = MemoryIndex()
    index.publish(of(PUBLIC_TENANT, 40, ("q",)), [])
    index.publish(of(THEIRS, 5), [])
    with redis.Redis.from_url(redis_url) as client:

        def kept(tenant: str) -> list[RecordedDecision]:
            entries: Any = client.xrange(stream_of(tenant))
            return [RecordedDecision.read(fields) for _, fields in entries]

        async with lab.router_on(index, redis_url=redis_url, decision_detail="text") as router:
            await router.route(tenant=OURS, pool="q", query="what only alpha asks")
            await router.route(tenant=THEIRS, pool="q", query="what only bravo asks")
            await router.route(tenant=THEIRS, query="a dull film")
            await lab.eventually(lambda: (len(kept(OURS)), len(kept(THEIRS))) == (1, 2))
        (ours,) = kept(OURS)
        assert (ours.pool_tenant, ours.pool, ours.text) == (PUBLIC_TENANT, "q", "what only alpha asks")
        assert ours.generation == lab.token(40, PUBLIC_TENANT)
        assert [each.pool_tenant for each in kept(THEIRS)] == [PUBLIC_TENANT, THEIRS]
        assert kept(PUBLIC_TENANT) == []


async def test_tenant_that_cannot_be_served_is_told_so_and_all_others_are_served(lab: Any, of: Any) -> None:
    index = MemoryIndex()
    index.publish(replace(of(THEIRS, 5), encoder_digest="sha256:other"), [])
    async with lab.router_on(index) as router:
        assert "LORAUTER_ENCODER" in router.follower.lacking()
        index.publish(of(OURS, 3), [])
        index.publish(of(PUBLIC_TENANT, 40, ("q",)), [])
        await lab.eventually(lambda: len(router.follower.current().served) == 2)
        assert router.follower.lacking() == ""
        assert (await router.route(tenant=OURS)).tenant == OURS
        error = await router.refusal(router.route(tenant=THEIRS, pool="q"))
        assert (error.grpc_status.name, error.reason) == ("UNAVAILABLE", "NO_SNAPSHOT")
        index.publish(of(THEIRS, 6), [])
        await lab.eventually(lambda: THEIRS in router.follower.current().served)
        assert (await router.route(tenant=THEIRS, pool="q")).tenant == PUBLIC_TENANT


async def test_tenant_that_is_deleted_or_renamed_is_let_go_of(lab: Any, of: Any) -> None:
    index = MemoryIndex()
    index.publish(of(OURS, 3), [])
    index.publish(of(THEIRS, 5), [])
    async with lab.router_on(index, believe_seconds=0.3) as router:
        index.clear(THEIRS)
        index.publish(of("charlie", 5), [])
        await lab.eventually(lambda: THEIRS not in router.follower.current().served)
        error = await router.refusal(router.route(tenant=THEIRS))
        assert error.reason == "NO_SNAPSHOT"
        assert (await router.route(tenant="charlie")).tenant == "charlie"
        assert not (await router.route(tenant=OURS)).stale
        tenants = REGISTRY.get_sample_value("lorauter_router_tenants")
        assert tenants == 2


async def test_nobody_is_let_go_of_while_an_index_is_filled_anew(lab: Any, of: Any) -> None:
    names = [f"t{number}" for number in range(4)]
    index = MemoryIndex()
    for name in names:
        index.publish(of(name, 2), [])
    async with lab.router_on(index, believe_seconds=0.5) as router:
        polls = "lorauter_router_poll_failures_total"

        def empty() -> float:
            return REGISTRY.get_sample_value(polls, {"reason": "INDEX_EMPTY"}) or 0.0

        for name in names:
            index.clear(name)
        # for longer than it takes to believe that a tenant is gone
        seen = empty() + 4 * 20
        await lab.eventually(lambda: empty() > seen)
        assert all([(await router.route(tenant=name)).stale for name in names])
        for name in names:
            index.publish(of(name, 3), [])
            token = lab.token(3, name)
            assert not (await router.route(tenant=name, min_generation=token)).stale
        assert router.follower.current().served.keys() == set(names)


async def test_routers_can_share_out_tenants(lab: Any, of: Any) -> None:
    index = MemoryIndex()
    for snapshot in (of(OURS, 3), of(THEIRS, 5), of(PUBLIC_TENANT, 40, ("q",))):
        index.publish(snapshot, [])
    async with lab.router_on(index, tenants=f"{OURS}, other") as router:
        assert router.follower.current().served.keys() == {OURS, PUBLIC_TENANT}
        assert (await router.route(tenant=OURS)).tenant == OURS
        assert (await router.route(tenant=OURS, pool="q")).tenant == PUBLIC_TENANT
        for fields in ({}, {"pool": "q"}, {"min_generation": lab.token(5, THEIRS)}):
            error = await router.refusal(router.route(tenant=THEIRS, **fields))
            assert (error.grpc_status.name, error.reason) == ("FAILED_PRECONDITION", "TENANT_NOT_SERVED")
            assert OURS not in error.message


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(
    postgres_server: Any, _migrated: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, str]]:
    """The address of a registry that keeps keys, and keys by what they are for."""
    folder: Path = tmp_path_factory.mktemp("registry")
    first = make_key()
    with postgres_server.database(_migrated) as url:
        settings = RegistrySettings.model_validate(
            {
                "database_url": url,
                "redis_url": "redis://127.0.0.1:1/0",
                "adapter_store": folder,
                "bootstrap_key": first,
            }
        )
        with assembled(settings) as parts:
            address = f"127.0.0.1:{await parts.grpc_server.start('127.0.0.1', 0)}"
            made = {"address": address, "any": first}
            for name, tenant, scopes in (
                ("ours", OURS, ["read", "invoke"]),
                ("theirs", THEIRS, ["read", "invoke"]),
                ("reader", OURS, ["read"]),
            ):
                async with AsyncClient(address, api_key=first, tenant=tenant, retry=NO_RETRY) as client:
                    made[name] = (await client.registry.create_api_key(scopes=scopes)).secret
            yield made
            await parts.grpc_server.stop(0)


@pytest.mark.asyncio(loop_scope="module")
async def test_keys_say_whose_pools_are_seen(keyed: dict[str, str], lab: Any, of: Any) -> None:
    index = MemoryIndex()
    for snapshot in (of(OURS, 3), of(PUBLIC_TENANT, 40, ("q",)), of(THEIRS, 5)):
        index.publish(snapshot, [])
    async with AsyncExitStack() as stack:
        settings = {"access": "keys", "registry_address": keyed["address"]}
        router = await stack.enter_async_context(lab.router_on(index, **settings))

        def bearer(name: str) -> list[tuple[str, str]]:
            return [("authorization", f"Bearer {keyed[name]}")]

        async def route(name: str, **fields: Any) -> pb.RouteResponse:
            request = pb.RouteRequest(query=lab.query, **fields)
            return await router.stub.Route(request, timeout=30, metadata=bearer(name))

        async def urls(name: str, **fields: Any) -> dict[str, str]:
            request = pb.GetSnapshotRequest(**fields)
            shown = await router.stub.GetSnapshot(request, timeout=30, metadata=bearer(name))
            return {pool.tenant: pool.backends[0].url for pool in shown.pools}

        assert (await route("ours")).tenant == OURS
        assert (await route("theirs")).tenant == THEIRS
        assert (await route("any", tenant=THEIRS)).tenant == THEIRS
        assert await urls("ours") == {OURS: f"http://{OURS}:1", PUBLIC_TENANT: ""}
        assert await urls("any", all_tenants=True) == {
            tenant: f"http://{tenant}:1" for tenant in (OURS, THEIRS, PUBLIC_TENANT)
        }
        for call, reason in (
            (route("ours", tenant=THEIRS), "TENANT_NOT_ALLOWED"),
            (route("ours", tenant=PUBLIC_TENANT), "TENANT_NOT_ALLOWED"),
            (route("reader"), "SCOPE_MISSING"),
            (urls("ours", all_tenants=True), "TENANT_NOT_ALLOWED"),
            (urls("any", all_tenants=True, pool="p"), "POOL_AND_ALL_TENANTS"),
        ):
            assert (await router.refusal(call)).reason == reason
        error = await router.refusal(router.route())
        assert (error.grpc_status, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING")
