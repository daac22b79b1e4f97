"""A gateway as a process whose every connection is TLS, with certificates on both ends, and keys."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from lorauter import AsyncClient
from lorauter.access import make_key
from lorauter.client import NO_RETRY
from lorauter.errors import Unauthenticated, Unavailable
from lorauter.registry.v1 import registry_pb2, registry_pb2_grpc
from lorauter.router.v1 import router_pb2, router_pb2_grpc
from lorauter.server.grpc import GrpcServer
from lorauter.server.tls import ServerTls
from lorauter.tls import Tls, client_context
from tests.integration.gateway.conftest import EnginePeer, RouterPeer, listening

HOST = "127.0.0.1"


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Knows one key."""

    def __init__(self, key: str) -> None:
        self.key = key

    async def WhoAmI(self, request: Any, context: Any) -> registry_pb2.Caller:
        if dict(context.invocation_metadata())["authorization"] != f"Bearer {self.key}":
            raise Unauthenticated("KEY_INVALID", "there is no such key")
        return registry_pb2.Caller(key_id="k", tenant="default", scopes=["invoke"])


class Seen(RouterPeer):
    """A router that notes what keys it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:
        self.keys.add(dict(context.invocation_metadata()).get("authorization", ""))
        return await super().Route(request, context)


def issue(folder: Path) -> dict[str, str]:
    """Writes a CA and one certificate of it, for all; returns the settings that name them."""
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued.private_key_pem.write_to_path(str(folder / "tls.key"))
    (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    return {
        "LORAUTER_TLS_CERTIFICATE": str(folder / "tls.crt"),
        "LORAUTER_TLS_KEY": str(folder / "tls.key"),
        "LORAUTER_TLS_CLIENT_CA": str(folder / "ca.pem"),
        "LORAUTER_TLS_CA": str(folder / "ca.pem"),
    }


@asynccontextmanager
async def serving(add: Any, servicer: Any, tls: ServerTls) -> AsyncIterator[str]:
    server = GrpcServer()
    add(servicer, server.server)
    port = await server.start(HOST, 0, tls)
    try:
        yield f"{HOST}:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def gateway(environment: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Runs a gateway; yields its ready line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lorauter_gateway.main",
        env={"PATH": os.environ["PATH"], "LORAUTER_DRAIN_SECONDS": "0", **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    try:
        yield json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    finally:
        process.kill()
        await process.wait()


async def test_every_connection_is_tls_with_certificates_on_both_ends(tmp_path: Path) -> None:
    settings = issue(tmp_path)
    ca, certificate, key_file = (str(tmp_path / name) for name in ("ca.pem", "tls.crt", "tls.key"))
    tls, own, callers = ServerTls(certificate, key_file, ca), make_key(), make_key()
    router, engine = Seen(), EnginePeer("engine-0")  # type: ignore[abstract]
    registry = Registry(callers)  # type: ignore[abstract]
    add_router = router_pb2_grpc.add_RouterServiceServicer_to_server
    add_registry = registry_pb2_grpc.add_RegistryServiceServicer_to_server
    async with (
        listening(engine.app) as url,
        serving(add_router, router, tls) as router_address,
        serving(add_registry, registry, tls) as registry_address,
    ):
        router.backends.append(router_pb2.Backend(backend_id="engine-0", kind="engine", url=url))
        environment = {
            **settings,
            "LORAUTER_ROUTER_ADDRESS": router_address,
            "LORAUTER_REGISTRY_ADDRESS": registry_address,
            "LORAUTER_API_KEY": own,
            "LORAUTER_SNAPSHOT_POLL_SECONDS": "0.05",
        }
        async with gateway(environment) as ready:
            whole = Tls(ca, certificate, key_file)
            context = client_context(whole, trusts_system=False)
            async with httpx.AsyncClient(verify=context, trust_env=False, timeout=20) as http:
                base = f"https://{HOST}:{ready['http_port']}"
                async with asyncio.timeout(20):
                    while (await http.get(f"{base}/readyz")).status_code != 200:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                body = {"model": "auto", "prompt": "Say hi"}
                for sent, status in ((callers, 200), (own, 401), ("", 401)):
                    headers = {"authorization": f"Bearer {sent}"} if sent else {}
                    answer = await http.post(f"{base}/v1/completions", json=body, headers=headers)
                    assert answer.status_code == status, answer.text
            address = f"{HOST}:{ready['grpc_port']}"
            async with AsyncClient(gateway=address, tls=whole, api_key=callers) as client:
                assert (await client.generate("Say hi")).text
            bare = Tls(ca)
            async with AsyncClient(gateway=address, tls=bare, api_key=callers, retry=NO_RETRY) as client:
                with pytest.raises(Unavailable):
                    await client.generate("Say hi")
    assert router.keys == {f"Bearer {own}"}
    assert len(engine.bodies) == 2
