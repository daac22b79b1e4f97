"""Gateways for callers of several tenants: a real router on their pools, and a backend for each pool."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from lorauter import AsyncClient
from lorauter.access import Caller, Scope, make_key
from lorauter.client import NO_RETRY
from lorauter.encoder import Encoder
from lorauter.errors import Unauthenticated
from lorauter.index import MemoryIndex
from lorauter.routing.model import Adapter, Backend, Snapshot
from lorauter.server.access import presented_in
from lorauter_gateway.api.http import create_http
from lorauter_gateway.config import Settings
from lorauter_gateway.main import assembled, grpc_server
from lorauter_router.config import Settings as RouterSettings
from lorauter_router.main import wired
from tests.integration.gateway.conftest import EnginePeer, listening
from tests.integration.gateway_servers.stand import TaskTexts, World, pool_of

POOLS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "a": {"demo": ("polite", "terse")},
    "b": {"demo": ("polite", "terse"), "b-secret-pool": ("b-secret-adapter",)},
    "public": {"commons": ("shared",), "demo": ("hidden",)},
}
"""The adapters of each tenant's pools. Tenant `c` has none."""

TEXTS = {"reverse": ("Reverse the word sun", "Turn the word lamp around", "Spell rain backwards")}
QUERY = "Reverse the word moon"


def digest_of(tenant: str, pool: str, adapter: str) -> str:
    """Returns the digest of an adapter; those with one name differ from tenant to tenant."""
    return "sha256:" + hashlib.sha256(f"{tenant}/{pool}/{adapter}".encode()).hexdigest()


class KeyBook:
    """A Gate that knows the keys that it gave out."""

    def __init__(self) -> None:
        self._callers: dict[bytes, Caller] = {}

    def key(self, tenant: str, *scopes: Scope, **fields: Any) -> str:
        """Returns a new key of a tenant, which may invoke unless ``scopes`` are named."""
        presented = presented_in(f"Bearer {(key := make_key())}")
        held = frozenset(scopes or {Scope.INVOKE})
        self._callers[presented.digest] = Caller(tenant, held, presented.id, **fields)
        return key

    async def admit(self, authorization: str) -> Caller:
        """See Gate."""
        found = self._callers.get(presented_in(authorization).digest)
        if found is None:
            raise Unauthenticated("KEY_INVALID", "there is no such key")
        return found


@dataclass
class Door:
    """One gateway, for callers with keys."""

    url: str
    grpc: str

    async def send(
        self, method: str, path: str, key: str, body: object = None, **headers: str
    ) -> httpx.Response:
        """Asks over HTTP; an empty key sends none."""
        sent = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
            return await http.request(method, self.url + path, headers={**sent, **headers}, json=body)

    async def ask(self, key: str, model: str = "auto", **fields: Any) -> httpx.Response:
        """Asks for a completion of QUERY."""
        body = {"model": model, "prompt": QUERY, "max_tokens": 8, **fields}
        return await self.send("POST", "/v1/completions", key, body)

    def client(self, key: str, **options: Any) -> AsyncClient:
        """Returns a client of the gateway."""
        return AsyncClient(gateway=self.grpc, api_key=key, retry=NO_RETRY, **options)


@dataclass
class Tenants:
    """Gateways with keys, and the backends behind them by tenant and pool."""

    keys: KeyBook
    index: MemoryIndex
    tasks: TaskTexts
    engines: dict[tuple[str, str], EnginePeer] = field(default_factory=dict)
    doors: list[Door] = field(default_factory=list)

    @property
    def door(self) -> Door:
        return self.doors[0]

    def publish(self, generation: int = 1) -> None:
        """Lets the router know all pools."""
        for tenant, pools in POOLS.items():
            made = {name: pool_of(self.tasks, self._world(tenant, name), name) for name in pools}
            made = {name: replace(pool, base_model=f"org/{tenant}-base") for name, pool in made.items()}
            snapshot = Snapshot(tenant, generation, "", self.tasks.encoder.digest, made)
            self.index.publish(snapshot, [])

    def _world(self, tenant: str, pool: str) -> World:
        names = POOLS[tenant][pool]
        adapters = [Adapter(name, 1, digest_of(tenant, pool, name), True, rank=8) for name in names]
        backend = Backend(f"{tenant}-engine", "engine", self.engines[tenant, pool].url, False)
        return World(adapters, {"reverse": names}, [backend])


@asynccontextmanager
async def tenants_standing(encoder: Encoder, gateways: int = 1, **settings: Any) -> AsyncIterator[Tenants]:
    """Starts backends, a router and gateways; ``settings`` are the gateways'."""
    stand = Tenants(KeyBook(), MemoryIndex(), TaskTexts(encoder, TEXTS))
    async with AsyncExitStack() as stack:
        for tenant, pools in POOLS.items():
            for pool in pools:
                engine = stand.engines[tenant, pool] = EnginePeer(f"{tenant}-engine")
                engine.url = await stack.enter_async_context(listening(engine.app))
        stand.publish()
        router_settings = RouterSettings.model_validate(
            {"qdrant_url": "http://127.0.0.1:1", "poll_seconds": 0.05, "access": "open"}
        )
        router = await stack.enter_async_context(wired(router_settings, stand.index, encoder))
        port = await router.server.start("127.0.0.1", 0)
        stack.push_async_callback(router.server.stop, 0)
        for _ in range(gateways):
            options = {"access": "open", "snapshot_poll_seconds": 0.02, "probe_seconds": 0.05, **settings}
            config = Settings(router_address=f"127.0.0.1:{port}", **options)
            stand.doors.append(await _door(stack, config, stand.keys))
        yield stand


async def _door(stack: AsyncExitStack, config: Settings, keys: KeyBook) -> Door:
    gateway = await stack.enter_async_context(assembled(config))
    url = await stack.enter_async_context(listening(create_http(gateway, config, keys)))
    server = grpc_server(gateway, config, keys)
    port = await server.start("127.0.0.1", 0)
    stack.push_async_callback(server.stop, 0)
    door = Door(url, f"127.0.0.1:{port}")
    async with asyncio.timeout(20):
        while (await door.send("GET", "/readyz", "")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return door
