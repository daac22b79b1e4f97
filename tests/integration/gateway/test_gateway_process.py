"""The gateway as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lorauter import Client
from lorauter.client import NO_RETRY
from lorauter.errors import Unavailable

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "LORAUTER_ACCESS": "open",
    "LORAUTER_LOG_FORMAT": "text",
    "LORAUTER_DRAIN_SECONDS": "1",
}
COMMAND = [sys.executable, "-m", "lorauter_gateway.main"]
PROMPT = "a prompt that nobody may log"


@pytest.fixture
def gateway() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A gateway whose router is away, and its ready line."""
    environment = {**ENVIRONMENT, "LORAUTER_ROUTER_ADDRESS": "127.0.0.1:1"}
    with subprocess.Popen(
        COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_process_serves_and_drains_when_the_router_is_away(
    gateway: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    process, ready = gateway
    assert ready["ready"] is True
    url = f"http://127.0.0.1:{ready['http_port']}"
    assert httpx.get(url + "/healthz").status_code == 200
    assert httpx.get(url + "/readyz").status_code == 503
    unhealthy = httpx.get(url + "/health")
    assert (unhealthy.status_code, unhealthy.json()["error_type"]) == (503, "healthcheck")
    answer = httpx.post(url + "/v1/completions", json={"model": "auto", "prompt": PROMPT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "router_unavailable")
    assert "lorauter_gateway_requests_total" in httpx.get(url + "/metrics").text
    with Client(gateway=f"127.0.0.1:{ready['grpc_port']}", retry=NO_RETRY) as client:
        with pytest.raises(Unavailable) as caught:
            client.generate(PROMPT)
        assert caught.value.reason == "ROUTER_UNAVAILABLE"
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "gateway.settings.read" in log
    assert PROMPT not in log
    assert "Traceback" not in log


def test_process_says_which_setting_is_missing() -> None:
    done = subprocess.run(COMMAND, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("LORAUTER_ROUTER_ADDRESS: ")


def test_process_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, lorauter_gateway.main; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
