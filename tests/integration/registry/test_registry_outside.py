"""What the registry reaches outside itself: the broker, the hub, its own process."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import huggingface_hub.constants
import pytest
import redis

from lorauter.errors import LorauterError, NotFound, PermissionDenied, Unavailable, UnprocessableRequest
from lorauter.identifiers import decode_generation
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.registry.v1 import registry_pb2_grpc
from lorauter_registry.adapters.hub import HuggingFaceHub
from lorauter_registry.adapters.wakeups import CeleryWakeups

COMMIT = "0123456789" * 4


def eventually(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def waking(url: str) -> Iterator[CeleryWakeups]:
    wakeups = CeleryWakeups(url)
    try:
        yield wakeups
    finally:
        wakeups.close()


def test_wakeup_names_the_workers_task_on_its_queue(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as broker, waking(redis_url) as wakeups:
        wakeups.wake(["index", "matching", "index"])
        eventually(lambda: broker.llen("index") == 1 and broker.llen("matching") == 1)
        message = json.loads(broker.lrange("index", 0, 0)[0])
    assert message["headers"]["task"] == "lorauter.index.drain"
    assert message["content-type"] == "application/json"
    assert json.loads(base64.b64decode(message["body"]))[:2] == [[], {}]


def test_one_wakeup_waits_when_changes_are_many_and_nobody_takes_any(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as broker, waking(redis_url) as wakeups:
        for _ in range(10_000):
            wakeups.wake(["index"])
        eventually(lambda: broker.llen("index") > 0)
        wakeups.close()
        assert broker.llen("index") == 1


def test_wakeups_are_in_nobodys_way_when_the_broker_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with waking(f"redis://{address}/0") as wakeups:
            for _ in range(1_000):  # a second each if they waited for it, longer than a test may take
                wakeups.wake(["index"])


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download of two files uses."""

    folder: Path
    missing = ""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.removeprefix(f"/n/m/resolve/{COMMIT}/")
        path = self.folder / Path(name).name
        is_missing = name == self.missing or not path.is_file()
        error = "RepoNotFound" if name == self.path else "EntryNotFound" if is_missing else ""
        if "gated" in self.path:
            error = "GatedRepo"
        if error:
            self.send_response(403 if error == "GatedRepo" else 404)
            self.send_header("X-Error-Code", error)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keeps the tests' output clean."""


@pytest.fixture
def hub(tiny_pool: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[_Hub], str]]:
    """A hub on loopback with one adapter, and its address."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    handler = type("Hub", (_Hub,), {"folder": tiny_pool.adapter("a")})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_hub_adapter_is_fetched_at_its_commit_and_removed(hub: tuple[type[_Hub], str]) -> None:
    handler, address = hub
    names = ["adapter_config.json", "adapter_model.safetensors"]
    for more in ([], ["chat_template.jinja", "tokenizer_config.json"]):
        for name in more:
            (handler.folder / name).write_text("{}")
        with HuggingFaceHub(10**6, 5, address).fetched(f"n/m@{COMMIT}") as folder:
            assert sorted(path.name for path in folder.iterdir() if path.is_file()) == sorted(names + more)
            for name in names + more:
                assert (folder / name).read_bytes() == (handler.folder / name).read_bytes()
        assert not folder.exists()


def fetch(address: str, name: str, max_bytes: int = 10**6) -> None:
    with HuggingFaceHub(max_bytes, 5, address).fetched(name):
        pytest.fail("nothing should have been fetched")


@pytest.mark.parametrize(
    ("name", "max_bytes", "missing", "error", "reason"),
    [
        (f"n/other@{COMMIT}", 10**6, "", NotFound, "HUB_NOT_FOUND"),
        (f"n/gated@{COMMIT}", 10**6, "", PermissionDenied, "HUB_FORBIDDEN"),
        (f"n/m@{COMMIT}", 10**6, "adapter_model.safetensors", NotFound, "HUB_NOT_FOUND"),
        (f"n/m@{COMMIT}", 100, "", UnprocessableRequest, "ADAPTER_TOO_LARGE"),
        ("n/m@main", 10**6, "", LorauterError, "INVALID_HUB_NAME"),
        (f"../m@{COMMIT}", 10**6, "", LorauterError, "INVALID_HUB_NAME"),
        (f"http://x/n/m@{COMMIT}", 10**6, "", LorauterError, "INVALID_HUB_NAME"),
    ],
)
def test_hub_adapter_is_refused_with_a_reason(
    hub: tuple[type[_Hub], str],
    name: str,
    max_bytes: int,
    missing: str,
    error: type[LorauterError],
    reason: str,
) -> None:
    handler, address = hub
    handler.missing = missing
    with pytest.raises(error) as caught:
        fetch(address, name, max_bytes)
    assert caught.value.reason == reason


@pytest.mark.usefixtures("hub")
def test_hub_is_unavailable_when_nobody_answers() -> None:
    with pytest.raises(Unavailable) as caught:
        fetch("http://127.0.0.1:1", f"n/m@{COMMIT}")
    assert caught.value.reason == "HUB_UNAVAILABLE"


class Process:
    """The registry as its console script, told everything by environment."""

    def __init__(self, folder: Path, database_url: str, redis_url: str) -> None:
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "LORAUTER_ADAPTER_STORE": str(folder / "store"),
            "LORAUTER_ADAPTER_ROOTS": str(folder / "incoming"),
            "LORAUTER_ACCESS": "open",
        }
        self.log = folder / "registry.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lorauter_registry.main"],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline() or b"{}")
        assert self.ready.get("ready"), self.log.read_text()
        self.http = f"http://127.0.0.1:{self.ready['http_port']}"
        self.grpc = f"127.0.0.1:{self.ready['grpc_port']}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(15)
        finally:
            self.process.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()


def make_ready(address: str, adapter: Path) -> None:
    """Gives pool ``p`` what a matching needs: an adapter, a task with an example, a backend."""
    task = {"id": "t", "pool": "p", "metric": "exact_match"}
    engine = {"id": "e", "pool": "p", "kind": "ENGINE", "url": "http://localhost:1"}
    with httpx.Client(base_url=address) as http:
        for path, body in (
            ("adapters", {"id": "a", "pool": "p", "path": str(adapter)}),
            ("tasks", task),
            ("backends", engine),
        ):
            http.post(f"/v1/{path}", json=body).raise_for_status()
        put = http.put("/v1/tasks/t/validation-set", content=b'{"input": "1", "target": "2"}')
        put.raise_for_status()


def test_process_serves_drains_and_hides_secrets(
    postgres_url: str, redis_url: str, tmp_path: Path, tiny_pool: Any
) -> None:
    registry = Process(tmp_path, postgres_url, redis_url)
    try:
        assert httpx.get(f"{registry.http}/readyz").status_code == 200
        base = {"id": "p", "base_model": tiny_pool.base_model, "base_path": str(tiny_pool.base())}
        pool = httpx.post(f"{registry.http}/v1/pools", json=base).json()
        make_ready(registry.http, tiny_pool.adapter("a"))
        with grpc.insecure_channel(registry.grpc) as channel:
            stub = registry_pb2_grpc.RegistryServiceStub(channel)
            assert stub.GetPool(pb.GetPoolRequest(id="p"), timeout=10).etag == pool["etag"]
            operation = stub.StartMatching(pb.StartMatchingRequest(pool="p"), timeout=10)
            stream = stub.WatchOperation(pb.WatchOperationRequest(id=operation.id), timeout=30)
            assert next(stream).state == pb.OPERATION_STATE_PENDING
            stub.CancelOperation(pb.CancelOperationRequest(id=operation.id), timeout=10)
            assert next(stream).cancel_requested
            stream.cancel()
        url = f"{registry.http}/v1/operations/{operation.id}/events"
        with httpx.stream("GET", url) as events:
            assert events.headers["content-type"].startswith("text/event-stream")
            lines = events.iter_lines()
            assert next(lines) == "event: operation"
            assert json.loads(next(lines).removeprefix("data: "))["id"] == operation.id
        metrics = httpx.get(f"{registry.http}/metrics").text
        assert 'lorauter_registry_call_seconds_count{call="create_pool",outcome="ok"} 1.0' in metrics
    finally:
        status = registry.stop()
    assert status == 0
    password = httpx.URL(postgres_url).password
    assert password
    assert password not in registry.log.read_text()


def test_errors_say_so_while_postgres_is_away(redis_url: str, tmp_path: Path) -> None:
    registry = Process(tmp_path, "postgresql://nobody@127.0.0.1:1/nothing", redis_url)
    try:
        assert httpx.get(f"{registry.http}/healthz").status_code == 200
        assert httpx.get(f"{registry.http}/readyz").status_code == 503
        answer = httpx.get(f"{registry.http}/v1/tasks")
        assert (answer.status_code, answer.json()["reason"]) == (503, "DATABASE_UNAVAILABLE")
        with grpc.insecure_channel(registry.grpc) as channel:
            stub = registry_pb2_grpc.RegistryServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.CreateTask(pb.CreateTaskRequest(id="t", pool="p", metric="exact_match"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        assert registry.stop() == 0


def test_write_is_there_once_when_the_process_is_killed_and_the_caller_repeats(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Killed while six callers write; what each repeats with its request_id is there exactly once."""
    registry = Process(tmp_path, postgres_url, redis_url)
    httpx.post(f"{registry.http}/v1/pools", json={"id": "p", "base_model": "b"}).raise_for_status()
    address = [registry.http]
    done: list[str] = []
    client = httpx.Client()

    def write(worker: int) -> None:
        for step in range(6):
            name = f"t{worker}-{step}"
            body = {"id": name, "pool": "p", "metric": "exact_match", "request_id": name}
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    client.post(f"{address[0]}/v1/tasks", json=body, timeout=5).raise_for_status()
                except httpx.HTTPError:
                    time.sleep(0.1)
                    continue
                done.append(name)
                break

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(done) >= 10, 30)
    registry.stop(signal.SIGKILL)
    registry = Process(tmp_path, postgres_url, redis_url)
    try:
        address[0] = registry.http
        for thread in threads:
            thread.join(60)
        tasks = httpx.get(f"{registry.http}/v1/tasks?page_size=1000").json()["tasks"]
        generation = httpx.get(f"{registry.http}/v1/generation").json()["generation"]
    finally:
        registry.stop()
        client.close()
    assert sorted(done) == sorted(task["id"] for task in tasks)
    assert len(tasks) == 36
    assert decode_generation(generation, "default") == 37
