"""A registry, a router and a gateway that ask for keys, and two tenants with everything in them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
from sqlmodel import Session
from starlette.types import ASGIApp

from lorauter import AsyncClient
from lorauter.access import make_key
from lorauter.client import NO_RETRY
from lorauter.encoder import Encoder
from lorauter.index import MemoryIndex
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.routing.model import Adapter, Backend, Snapshot
from lorauter.server.remote_keys import gate_of
from lorauter.store import tables
from lorauter_gateway.api.http import create_http
from lorauter_gateway.config import Settings as GatewaySettings
from lorauter_gateway.main import assembled as gateway_assembled
from lorauter_gateway.main import grpc_server
from lorauter_registry.config import Settings as RegistrySettings
from lorauter_registry.main import assembled as registry_assembled
from lorauter_router.config import Settings as RouterSettings
from lorauter_router.main import wired
from tests.integration.gateway.conftest import EnginePeer, listening
from tests.integration.gateway_servers.stand import TaskTexts, World, pool_of

SECRET = "tango-secret"
"""What is in every text of the other tenant, and in nothing that anybody asks."""
QUERY = "Reverse the word moon"
TEXTS = ("Reverse the word sun", "Turn the word lamp around", "Spell rain backwards")
OURS, THEIRS, NOBODYS = "alpha", "bravo", "ghost"
"""What the names of the two tenants' things begin with, and, as long, those of things that do not exist."""


@dataclass
class Names:
    """What one tenant's things are called."""

    pool: str
    task: str
    adapter: str
    engine: str
    tenant: str
    operation: str = "00000000-0000-4000-8000-000000000000"
    decision: str = "0" * 32
    key: str = "0" * 16
    profile: str = "sha256:" + "0" * 64
    manifest: str = "sha256:" + "0" * 64
    generation: str = "g" + "0" * 16
    page: str = "AAAA"
    folder: str = ""

    @classmethod
    def of(cls, tenant: str, folder: str = "") -> Names:
        own = {noun: f"{tenant}-{noun}" for noun in ("pool", "task", "adapter", "engine")}
        return cls(**own, tenant=tenant, folder=folder)


@dataclass
class Stage:
    """The three services, and both tenants' keys and names."""

    registry: str = ""
    router: str = ""
    gateway: str = ""
    rest: httpx.AsyncClient = field(default_factory=httpx.AsyncClient)
    http: httpx.AsyncClient = field(default_factory=httpx.AsyncClient)
    apps: dict[str, ASGIApp] = field(default_factory=dict)
    engine: Any = None
    first: str = field(default_factory=make_key)
    keys: dict[str, str] = field(default_factory=dict)
    names: dict[str, Names] = field(default_factory=dict)
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    before: list[Any] = field(default_factory=list)
    """What the other tenant read of its own at first."""

    def client(self, tenant: str) -> AsyncClient:
        return AsyncClient(
            self.registry, self.router, self.gateway, api_key=self.keys[tenant], retry=NO_RETRY
        )

    async def make_key(self, scopes: list[str], tenant: str, **fields: Any) -> Any:
        async with AsyncClient(self.registry, api_key=self.first, tenant=tenant, retry=NO_RETRY) as client:
            return await client.registry.create_api_key(scopes=scopes, **fields)


@asynccontextmanager
async def staged(postgres_url: str, folder: Path, files: Any, encoder: Encoder) -> AsyncIterator[Stage]:
    """Starts the services, and fills both tenants."""
    stage = Stage()
    gateways = make_key()
    async with AsyncExitStack() as stack:
        await _registry(stage, stack, postgres_url, folder, files, gateways)
        checking = {"access": "keys", "registry_address": stage.registry}
        index = MemoryIndex()
        engines = {}
        for tenant in (OURS, THEIRS, "public"):
            engines[tenant] = EnginePeer(f"{tenant}-engine")
            engines[tenant].url = await stack.enter_async_context(listening(engines[tenant].app))
            stage.keys[tenant] = (await stage.make_key(["admin"], tenant)).secret
            stage.names[tenant] = Names.of(tenant, str(files.adapter(f"{tenant}-adapter", seed=len(engines))))
            await _fill(stage, tenant, engines[tenant].url)
            tasks = TaskTexts(encoder, {stage.names[tenant].task: TEXTS})
            _publish(stage, tenant, index, tasks, engines[tenant].url)
        stage.names[NOBODYS] = Names.of(NOBODYS, stage.names[THEIRS].folder.replace(THEIRS, NOBODYS))
        routing = RouterSettings.model_validate(
            {"qdrant_url": "http://127.0.0.1:1", "poll_seconds": 0.05, **checking}
        )
        router = await stack.enter_async_context(wired(routing, index, encoder))
        stage.router = f"127.0.0.1:{await router.server.start('127.0.0.1', 0)}"
        stack.push_async_callback(router.server.stop, 0)
        await _gateway(stage, stack, {"router_address": stage.router, "api_key": gateways, **checking})
        for service in ("registry", "router", "gateway"):
            channel = grpc.aio.insecure_channel(getattr(stage, service))
            stage.channels[service] = await stack.enter_async_context(channel)
        yield stage


async def _registry(
    stage: Stage, stack: AsyncExitStack, postgres_url: str, folder: Path, files: Any, gateways: str
) -> None:
    settings = RegistrySettings.model_validate(
        {
            "database_url": postgres_url,
            "redis_url": "redis://127.0.0.1:1/0",
            "adapter_store": folder / "store",
            "adapter_roots": str(files.root),
            "watch_seconds": 0.02,
            "bootstrap_key": stage.first,
            "gateway_key": gateways,
        }
    )
    parts = stack.enter_context(registry_assembled(settings))
    stage.engine = parts.registry.context.engine
    stage.registry = f"127.0.0.1:{await parts.grpc_server.start('127.0.0.1', 0)}"
    stack.push_async_callback(parts.grpc_server.stop, 0)
    transport = httpx.ASGITransport(parts.rest, raise_app_exceptions=False)
    stage.apps["registry"] = parts.rest
    client = httpx.AsyncClient(transport=transport, base_url="http://registry", timeout=20)
    stage.rest = await stack.enter_async_context(client)


async def _gateway(stage: Stage, stack: AsyncExitStack, given: dict[str, Any]) -> None:
    settings = GatewaySettings.model_validate({"snapshot_poll_seconds": 0.05, "probe_seconds": 0.1, **given})
    gate = await stack.enter_async_context(gate_of(settings))
    gateway = await stack.enter_async_context(gateway_assembled(settings))
    stage.apps["gateway"] = app = create_http(gateway, settings, gate)
    url = await stack.enter_async_context(listening(app))
    server = grpc_server(gateway, settings, gate)
    stage.gateway = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    stack.push_async_callback(server.stop, 0)
    stage.http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False, timeout=20))


async def _fill(stage: Stage, tenant: str, url: str) -> None:
    """Makes one of everything through the registry's calls; what only workers write, as rows."""
    named, text = stage.names[tenant], f"{SECRET} of {tenant}"
    async with stage.client(tenant) as client:
        calls = client.registry
        shape = pb.LinearModule(name="model.layers.0.self_attn.q_proj", in_features=8, out_features=8)
        await calls.create_pool(id=named.pool, base_model="tiny/base", description=text, modules=[shape])
        kind = pb.BackendKind.BACKEND_KIND_ENGINE
        await calls.register_backend(id=named.engine, pool=named.pool, kind=kind, url=url)
        await calls.create_task(
            id=named.task, pool=named.pool, metric="exact_match", description=text, tags=[text]
        )
        examples = [pb.ValidationExample(input=one, target=text) for one in TEXTS]
        await calls.put_validation_set(named.task, examples)
        await calls.register_adapter(
            id=named.adapter, pool=named.pool, path=named.folder, description=text, tags=[text]
        )
        await calls.set_adapter_alias(id=named.adapter, alias="champion", version=1)
        scores = (("base", 0.1), (named.adapter, 0.9))
        await calls.import_affinities(
            affinities=[
                pb.Affinity(task_id=named.task, adapter_id=adapter, score=score, count=20)
                for adapter, score in scores
            ]
        )
        named.operation = (await calls.start_matching(pool=named.pool)).id
        named.key = (await calls.create_api_key(scopes=["read"], description=text)).key.id
        named.manifest = (await calls.propose_pool_manifest(pool=named.pool, memory_bytes=2**30)).digest
        named.generation = (await calls.get_generation()).generation
        named.profile = "sha256:" + hashlib.sha256(tenant.encode()).hexdigest()
        named.decision = hashlib.md5(tenant.encode()).hexdigest()
        with Session(stage.engine) as session:
            for row in _rows(named, text):
                session.add(row)
            session.commit()
        page = await calls.transport.unary(
            f"/{calls.service}/ListDecisions",
            pb.ListDecisionsRequest(page_size=1),
            pb.ListDecisionsResponse,
            idempotent=True,
        )
        named.page = page.next_page_token


def _rows(named: Names, text: str) -> list[Any]:
    decision: dict[str, Any] = {
        "tenant": named.tenant,
        "pool": named.pool,
        "strategy": "default",
        "generation": 1,
        "profile_digest": named.profile,
        "encoder_digest": "sha256:e",
        "stale": False,
        "action": "ADAPTERS",
        "best_adapter": named.adapter,
        "best_version": 1,
        "expected_utility": 0.75,
        "typicality": 0.5,
        "adapters": [{"adapter_id": named.adapter, "version": 1, "weight": 1.0}],
        "tasks": [{"task_id": named.task, "similarity": 0.5, "probability": 1.0}],
        "options": {"max_adapters": 3, "tags": [], "exclude_tasks": [], "exclude_adapters": []},
        "text_digest": "f" * 32,
        "vector": b"",
        "terms": b"",
        "text": text,
    }
    now = datetime.now(UTC)
    profile = {
        "tenant": named.tenant,
        "pool": named.pool,
        "digest": named.profile,
        "generation": 1,
        "constants": {"a": 1.0},
        "figures": {"examples": 3.0},
        "active": True,
        "create_time": now,
    }
    return [
        tables.Decision.model_validate({**decision, "id": named.decision, "time": now}),
        tables.Decision.model_validate(
            {**decision, "id": named.decision[::-1], "time": now - timedelta(hours=1)}
        ),
        tables.Profile.model_validate(profile),
    ]


def _publish(stage: Stage, tenant: str, index: MemoryIndex, tasks: TaskTexts, url: str) -> None:
    """Lets the router know what the tenant's worker would have told it."""
    named = stage.names[tenant]
    digest = "sha256:" + hashlib.sha256(f"{tenant} adapter".encode()).hexdigest()
    world = World(
        [Adapter(named.adapter, 1, digest, True, rank=2)],
        {named.task: [named.adapter]},
        [Backend(named.engine, "engine", url, False)],
        base=f"org/{tenant}-base",
    )
    made = {named.pool: pool_of(tasks, world, named.pool)}
    index.publish(Snapshot(tenant, 100, "", tasks.encoder.digest, made), [])
