"""The router as a process: its ready line, its health, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lorauter_router.main import main


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_process_says_what_it_lacks_and_drains_when_asked_to_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lorauter_router.main"],
        env={**os.environ, "QDRANT_URL": "http://127.0.0.1:1", "LORAUTER_ACCESS": "open"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] is True
        assert get(ready["http_port"], "/healthz") == (200, "ok")
        status, lacking = get(ready["http_port"], "/readyz")
        assert (status, "QDRANT_URL" in lacking) == (503, True)
        assert "lorauter_router_snapshot_generation" in get(ready["http_port"], "/metrics")[1]
        with grpc.insecure_channel(f"127.0.0.1:{ready['grpc_port']}") as channel:
            request = health_pb2.HealthCheckRequest(service="lorauter.router.v1.RouterService")
            health = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QDRANT_URL", "ftp://x"),
        ("LORAUTER_POLL_SECONDS", "0"),
        ("LORAUTER_ENCODE_QUEUE", "many"),
        ("LORAUTER_REGISTRY_ADDRESS", ""),
    ],
)
def test_boot_names_the_setting_when_it_is_wrong(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LORAUTER_REGISTRY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(variable)
