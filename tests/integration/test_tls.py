"""TLS of the servers and the client that all services share, with certificates that are made here."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lorauter import AsyncClient, Client
from lorauter.client import NO_RETRY
from lorauter.errors import InvalidArgument, Unavailable
from lorauter.router.v1 import router_pb2, router_pb2_grpc
from lorauter.server.grpc import GrpcServer
from lorauter.server.http import create_app
from lorauter.server.run import serve
from lorauter.settings import ServiceSettings
from lorauter.tls import Tls, WatchedTls, client_context

HOST = "127.0.0.1"


class Files:
    """A server's certificate, a client's, and the CAs that they are trusted by."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.client_ca = folder / "ca.pem", folder / "client-ca.pem"
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.client_certificate, self.client_key = folder / "client.pem", folder / "client.key"
        self.issue_server()
        self.issue_client()

    def issue_server(self) -> None:
        """Replaces the server's certificate by one of a new CA."""
        authority = trustme.CA()
        _issue(authority, self.certificate, self.key)
        authority.cert_pem.write_to_path(str(self.ca))

    def issue_client(self) -> None:
        """Replaces the client's certificate by one of a new CA."""
        authority = trustme.CA()
        _issue(authority, self.client_certificate, self.client_key)
        authority.cert_pem.write_to_path(str(self.client_ca))

    def server(self, *, mutual: bool = False) -> dict[str, str]:
        found = {"tls_certificate": str(self.certificate), "tls_key": str(self.key)}
        return {**found, "tls_client_ca": str(self.client_ca)} if mutual else found

    def client(self, *, mutual: bool = False) -> Tls:
        if mutual:
            return Tls(str(self.ca), str(self.client_certificate), str(self.client_key))
        return Tls(str(self.ca))


def _issue(authority: trustme.CA, certificate: Path, key: Path) -> None:
    issued = authority.issue_cert(HOST, "localhost")
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class Router(router_pb2_grpc.RouterServiceServicer):
    async def GetSnapshot(self, request: Any, context: Any) -> router_pb2.GetSnapshotResponse:
        return router_pb2.GetSnapshotResponse(generation="g1")


ROUTER = Router()  # type: ignore[abstract]


class Served:
    """Where a service listens."""

    def __init__(self, server: GrpcServer, ready: dict[str, Any]) -> None:
        self.server = server
        self.grpc = f"{HOST}:{ready['grpc_port']}"
        self.http_port = int(ready["http_port"])
        self.http = f"https://{HOST}:{self.http_port}"

    async def snapshot(self, tls: Tls) -> str:
        """Asks over gRPC; raises Unavailable where no connection comes about."""
        async with AsyncClient(router=self.grpc, tls=tls, retry=NO_RETRY, timeout_seconds=5) as client:
            return (await client.router.get_snapshot()).generation

    async def probe(self, tls: Tls) -> int:
        """Asks over HTTP; raises httpx.TransportError where no connection comes about."""
        context = client_context(tls, trusts_system=False)
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            return (await client.get(f"{self.http}/healthz")).status_code

    async def refuses(self, tls: Tls) -> bool:
        with pytest.raises(Unavailable):
            await self.snapshot(tls)
        with pytest.raises(httpx.TransportError):
            await self.probe(tls)
        return True


@asynccontextmanager
async def serving(capsys: pytest.CaptureFixture[str], **settings: Any) -> AsyncIterator[Served]:
    """Serves a router and HTTP as every service does."""

    async def readiness() -> str:
        return ""

    server = GrpcServer()
    router_pb2_grpc.add_RouterServiceServicer_to_server(ROUTER, server.server)
    app = create_app("test", readiness, 1024)
    task = asyncio.create_task(serve(ServiceSettings(host=HOST, drain_seconds=0, **settings), app, server))
    said: list[str] = []
    while not (ready := [line for line in said if '"ready"' in line]):
        await asyncio.wait([task], timeout=0.01)
        assert not task.done(), task.exception()
        said += capsys.readouterr().out.splitlines()
    yield Served(server, json.loads(ready[0]))
    os.kill(os.getpid(), signal.SIGTERM)
    await task


async def test_callers_need_tls_that_they_trust(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = Tls(str(files.client_ca))
    async with serving(capsys, **files.server()) as served:
        assert await served.snapshot(files.client()) == "g1"
        assert await served.probe(files.client()) == 200
        assert await served.refuses(stranger)
        async with AsyncClient(router=served.grpc, retry=NO_RETRY, timeout_seconds=5) as plain:
            with pytest.raises(Unavailable):
                await plain.router.get_snapshot()
        async with httpx.AsyncClient(trust_env=False) as plain_http:
            with pytest.raises(httpx.TransportError):
                await plain_http.get(f"http://{HOST}:{served.http_port}/healthz")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
async def test_tls_below_1_2_is_refused(
    files: Files, capsys: pytest.CaptureFixture[str], version: ssl.TLSVersion
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(files.ca)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    async with serving(capsys, **files.server()) as served:
        for port in (served.http_port, int(served.grpc.partition(":")[2])):
            try:
                _, writer = await asyncio.open_connection(HOST, port, ssl=context)
                agreed = writer.get_extra_info("ssl_object").version()
                writer.close()
            except (ssl.SSLError, ConnectionError):
                agreed = None
            assert agreed == ("TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else None)


async def test_clients_without_a_certificate_are_refused_when_it_is_mutual(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    async with serving(capsys, **files.server(mutual=True)) as served:
        assert await served.snapshot(files.client(mutual=True)) == "g1"
        assert await served.probe(files.client(mutual=True)) == 200
        assert await served.refuses(files.client())
        assert await served.refuses(Tls(str(files.ca), str(other.client_certificate), str(other.client_key)))


async def test_a_replaced_certificate_is_shown_to_whom_connects_and_drops_nobody(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old_ca = tmp_path / "old-ca.pem"
    old_ca.write_bytes(files.ca.read_bytes())
    old = Tls(str(old_ca))
    async with serving(capsys, **files.server()) as served:
        credentials = grpc.ssl_channel_credentials(old_ca.read_bytes())
        async with (
            grpc.aio.secure_channel(served.grpc, credentials) as channel,
            httpx.AsyncClient(verify=client_context(old, trusts_system=False), trust_env=False) as http,
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            assert (await http.get(f"{served.http}/healthz")).status_code == 200
            files.issue_server()
            assert await served.snapshot(files.client()) == "g1"
            assert await served.probe(files.client()) == 200
            assert await served.refuses(old)
            await served.server.set_serving(False)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await http.get(f"{served.http}/healthz")).status_code == 200


async def test_half_a_replacement_changes_nothing(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(capsys, **files.server()) as served:
        key, ca = files.key.read_bytes(), files.ca.read_bytes()
        files.issue_server()
        new_key, new_ca = files.key.read_bytes(), files.ca.read_bytes()
        files.key.write_bytes(key)
        files.ca.write_bytes(ca)
        assert await served.snapshot(files.client()) == "g1"
        assert await served.probe(files.client()) == 200
        files.key.write_bytes(new_key)
        files.ca.write_bytes(new_ca)
        assert await served.snapshot(files.client()) == "g1"
        assert await served.probe(files.client()) == 200


@pytest.mark.parametrize("blocking", [True, False])
async def test_clients_go_on_when_their_certificate_and_the_ca_are_replaced(
    files: Files, capsys: pytest.CaptureFixture[str], blocking: bool
) -> None:
    async with (
        serving(capsys, **files.server(mutual=True)) as served,
        snapshots(served.grpc, files.client(mutual=True), blocking) as ask,
    ):
        assert await ask() == "g1"
        files.issue_client()
        files.issue_server()
        # the connection that is there is good until it ends; this client then makes another one
        await served.server.server.stop(0)
        server = GrpcServer()
        router_pb2_grpc.add_RouterServiceServicer_to_server(ROUTER, server.server)
        tls = ServiceSettings.model_validate(files.server(mutual=True)).server_tls()
        await server.start(HOST, int(served.grpc.partition(":")[2]), tls)
        deadline = time.monotonic() + 10
        while (found := await ask()) != "g1":
            assert time.monotonic() < deadline, found
        await server.stop(0)


@asynccontextmanager
async def snapshots(address: str, tls: Tls, blocking: bool) -> AsyncIterator[Any]:
    """Yields what asks one client for a snapshot; the answer is its generation, or why there is none."""

    async def ask() -> str:
        try:
            if blocking:
                found = await asyncio.to_thread(lambda: client.router.get_snapshot())
            else:
                found = await aio.router.get_snapshot()
        except Unavailable as error:
            return error.message
        return found.generation

    with Client(router=address, tls=tls, retry=NO_RETRY, timeout_seconds=5) as client:
        async with AsyncClient(router=address, tls=tls, retry=NO_RETRY, timeout_seconds=5) as aio:
            yield ask


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, **values: object) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, value in values.items():
            patch.setenv(f"LORAUTER_TLS_{name.upper()}", str(value))
        yield


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"certificate": "missing.pem"}, "LORAUTER_TLS_CERTIFICATE"),
        ({"certificate": "garbage"}, "LORAUTER_TLS_CERTIFICATE"),
        ({"key": "garbage"}, "LORAUTER_TLS_KEY"),
        ({"key": "client.key"}, "LORAUTER_TLS_KEY"),
        ({"key": "locked.key"}, "LORAUTER_TLS_KEY"),
        ({"key": ""}, "LORAUTER_TLS_KEY"),
        ({"certificate": ""}, "LORAUTER_TLS_CERTIFICATE"),
        ({"certificate": "", "key": ""}, "LORAUTER_TLS_CERTIFICATE"),
        ({"client_ca": "garbage"}, "LORAUTER_TLS_CLIENT_CA"),
        ({"client_ca": "server.key"}, "LORAUTER_TLS_CLIENT_CA"),
        ({"ca": "missing.pem"}, "LORAUTER_TLS_CA"),
    ],
)
def test_unusable_files_stop_the_start_by_the_setting_that_names_them(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: dict[str, str],
    named: str,
) -> None:
    (tmp_path / "garbage").write_text("-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
    _lock(files.key, tmp_path / "locked.key")
    good = {"certificate": "server.pem", "key": "server.key", "client_ca": "client-ca.pem", "ca": "ca.pem"}
    with environment(monkeypatch, **{k: tmp_path / v for k, v in good.items()}):
        assert ServiceSettings.load().server_tls() is not None
    chosen = {name: tmp_path / value if value else "" for name, value in {**good, **wrong}.items()}
    with environment(monkeypatch, **chosen), pytest.raises(SystemExit):
        ServiceSettings.load()
    assert capsys.readouterr().err.startswith(f"{named}: ")


def _lock(key: Path, locked: Path) -> None:
    from cryptography.hazmat.primitives import serialization as forms

    read = forms.load_pem_private_key(key.read_bytes(), None)
    secret = forms.BestAvailableEncryption(b"secret")
    locked.write_bytes(read.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, secret))


def test_the_environment_says_how_services_are_called(files: Files) -> None:
    assert Tls.from_environment({}) is None
    found = Tls.from_environment({"LORAUTER_TLS_CA": str(files.ca)})
    assert found == files.client()
    with pytest.raises(InvalidArgument, match="LORAUTER_TLS_CA") as refused:
        WatchedTls(Tls("/nowhere.pem"))
    assert refused.value.reason == "TLS_FILES_UNUSABLE"
