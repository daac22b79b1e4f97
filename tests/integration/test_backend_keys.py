"""Inference servers that ask for a key, called by the gateway's drivers and the worker's evaluators."""

from __future__ import annotations

import contextlib
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from lorauter.backends import BackendAccess
from lorauter.errors import FailedPrecondition, LorauterError
from lorauter.lora.store import AdapterStore
from lorauter.metrics import metric
from lorauter.prompts import GenerationSpec
from lorauter.tls import Tls
from lorauter_gateway.adapters.connections import Connections
from lorauter_gateway.adapters.kinds import KINDS
from lorauter_gateway.domain.model import Message, sampling
from lorauter_gateway.ports import BackendCall, BackendFailed
from lorauter_suite.embedded.ports import LOOPBACK, free_port
from lorauter_suite.embedded.process import ProcessSpec
from lorauter_suite.embedded.process import running as running_process
from lorauter_worker.adapters.evaluators import make_evaluator
from lorauter_worker.ports import Question, Scoring
from tests.protocol_servers.process import running

KEY = "sk-a.key_of+backends/0="
BASE = "lorauter/demo-base"
OPEN = {
    "engine": ("/", "/health", "/ping", "/healthz", "/readyz", "/metrics"),
    "tgi": ("/", "/health", "/ping", "/info", "/v1/models"),
    "vllm": ("/health", "/version"),
}
GUARDED = {
    "engine": ("/generate", "/", "/v1/chat/completions", "/v1/score"),
    "tgi": ("/generate", "/generate_stream", "/", "/v1/chat/completions"),
    "vllm": ("/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter"),
}


@dataclass(frozen=True)
class Guarded:
    """A server that asks for KEY, and how it is connected to."""

    kind: str
    url: str
    tls: Tls | None = None

    def access(self, key: str) -> BackendAccess:
        return BackendAccess(key, self.tls)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.send("GET", path, headers)

    def send(self, method: str, path: str, headers: Any = ()) -> httpx.Response:
        verify: ssl.SSLContext | bool = self.access("").context()
        with httpx.Client(verify=verify, trust_env=False) as client:
            body = {"inputs": "x"} if method == "POST" else None
            return client.request(method, self.url + path, headers=headers, json=body)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, demo_pool: Path) -> Iterator[Guarded]:
    """A real engine, over TLS."""
    folder = tmp_path_factory.mktemp("engine")
    authority = trustme.CA()
    issued = authority.issue_cert(LOOPBACK)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    port = free_port()
    found = Guarded("engine", f"https://{LOOPBACK}:{port}", Tls(str(folder / "ca.pem")))
    environment = {
        "LORAUTER_MODEL": str(demo_pool / "base"),
        "LORAUTER_MODEL_ID": BASE,
        "LORAUTER_ADAPTER_STORE": str(AdapterStore(folder / "store").root),
        "LORAUTER_HTTP_PORT": str(port),
        "LORAUTER_BACKEND_KEY": KEY,
        "LORAUTER_TLS_CERTIFICATE": str(folder / "server.pem"),
        "LORAUTER_TLS_KEY": str(folder / "server.pem"),
    }

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return found.get("/readyz").status_code == 200
        return False

    command = [sys.executable, "-m", "lorauter_engine.main"]
    with running_process(ProcessSpec("engine", command, environment, probe=is_ready)):
        yield found


@pytest.fixture(scope="module")
def servers(engine: Guarded) -> Iterator[dict[str, Guarded]]:
    """One server of each kind."""
    with running("tgi", api_key=KEY) as tgi, running("vllm", api_key=KEY) as vllm:
        found = (engine, Guarded("tgi", tgi.url), Guarded("vllm", vllm.url))
        yield {server.kind: server for server in found}


@pytest.fixture(params=["engine", "tgi", "vllm"])
def server(request: pytest.FixtureRequest, servers: dict[str, Guarded]) -> Guarded:
    """Each kind in turn."""
    return servers[request.param]


@contextlib.asynccontextmanager
async def driver(server: Guarded, key: str) -> AsyncIterator[Any]:
    async with Connections(30, 5, server.access(key)) as connections:
        yield KINDS[server.kind].make(server.url, connections)


CALLS = [
    BackendCall(prompt, sampling(max_new_tokens=4), (), "", BASE)
    for prompt in ("Say hi", (Message("user", "Say hi"),))
]


async def test_the_gateway_is_answered_with_the_key(server: Guarded) -> None:
    async with driver(server, KEY) as found:
        assert await found.is_healthy()
        await found.limits()
        for call in CALLS:
            assert (await found.generate(call)).usage.prompt_tokens
            assert [piece async for piece in await found.stream(call)][-1].finish


@pytest.mark.parametrize("key", ["", "another", KEY + "x"])
async def test_the_gateway_says_that_its_key_is_refused(server: Guarded, key: str) -> None:
    async with driver(server, key) as found:
        assert await found.is_healthy()
        for call in CALLS:
            for ask in (found.generate, found.stream):
                with pytest.raises(BackendFailed) as caught:
                    await ask(call)
                assert caught.value.error.reason == "BACKEND_KEY_REFUSED"
                assert caught.value.try_elsewhere
                assert "LORAUTER_BACKEND_KEY" in caught.value.error.message


def evaluate(server: Guarded, key: str) -> list[Any]:
    kind = server.kind.upper()
    scoring = Scoring(metric("exact_match"), GenerationSpec(max_new_tokens=4))
    with contextlib.closing(make_evaluator([(kind, server.url)], 10.0, server.access(key))) as found:
        return found.evaluate([Question({"prompt": "Say hi"}, "hi", "")], scoring)


def test_the_worker_measures_with_the_key_and_says_that_another_is_refused(server: Guarded) -> None:
    assert len(evaluate(server, KEY)) == 1
    with pytest.raises(FailedPrecondition) as caught:
        evaluate(server, "another")
    assert caught.value.reason == "BACKEND_KEY_REFUSED"


def test_the_worker_follows_no_redirect_with_its_key() -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(307)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Keeps the test's output quiet."""

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as redirecting:
        threading.Thread(target=redirecting.serve_forever, args=(0.01,), daemon=True).start()
        for kind in ("engine", "tgi", "vllm"):
            with pytest.raises(LorauterError):
                evaluate(Guarded(kind, f"http://{LOOPBACK}:{redirecting.server_port}"), KEY)
        redirecting.shutdown()
    assert asked
    assert "/elsewhere" not in asked


def test_servers_ask_for_the_key_where_work_is_done(server: Guarded) -> None:
    for path in OPEN[server.kind]:
        assert server.get(path).status_code == 200, path
    for path in GUARDED[server.kind]:
        assert server.send("POST", path).status_code == 401, path
        assert server.send("POST", path, {"authorization": f"Bearer {KEY}"}).status_code != 401, path


def test_the_engine_takes_its_key_once_and_as_a_bearer_token_only(engine: Guarded) -> None:
    right = ("authorization", f"Bearer {KEY}")
    assert engine.send("GET", "/info", [right]).status_code == 200
    assert engine.send("GET", "/info", [("authorization", f"bearer  {KEY}")]).status_code == 200
    for headers in (
        [],
        [right, right],
        [("authorization", "Bearer x"), right],
        [("authorization", KEY)],
        [("authorization", f"Basic {KEY}")],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {KEY[:-1]}")],
    ):
        refused = engine.send("GET", "/info", headers)
        assert refused.status_code == 401, headers
        assert refused.json()["reason"] == "BACKEND_KEY_REFUSED"
        assert refused.headers["www-authenticate"] == "Bearer"
        assert KEY not in refused.text


async def test_servers_of_another_authority_are_not_called(engine: Guarded, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    stranger = Guarded("engine", engine.url, Tls(str(tmp_path / "ca.pem")))
    async with Connections(30, 5, stranger.access(KEY)) as connections:
        found = KINDS["engine"].make(engine.url, connections)
        assert not await found.is_healthy()
        with pytest.raises(BackendFailed) as caught:
            await found.generate(CALLS[0])
    assert caught.value.error.reason == "BACKEND_UNREACHABLE"
    access = BackendAccess(KEY, stranger.tls)
    scoring = Scoring(metric("exact_match"), GenerationSpec(max_new_tokens=4))
    with (
        contextlib.closing(make_evaluator([("ENGINE", engine.url)], 1.0, access)) as evaluator,
        pytest.raises(LorauterError) as away,
    ):
        evaluator.evaluate([Question({"prompt": "Say hi"}, "hi", "")], scoring)
    assert away.value.reason == "BACKEND_UNAVAILABLE"
