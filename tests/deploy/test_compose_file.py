"""docker-compose.yml is valid, pinned and reachable from this machine only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def test_file_keeps_to_the_compose_schema() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(COMPOSE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@every_service
def test_image_names_an_exact_version(service: dict[str, Any]) -> None:
    tag = service["image"].rpartition(":")[2]
    assert tag.removeprefix("v").replace(".", "").isdigit(), service["image"]
    assert tag.count(".") >= 1, service["image"]


@every_service
def test_ports_are_bound_to_loopback(service: dict[str, Any]) -> None:
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@every_service
def test_service_says_when_it_can_work(service: dict[str, Any]) -> None:
    assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])


def test_only_the_documented_password_is_a_default() -> None:
    secrets = [
        (name, value)
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if "PASSWORD" in name or "KEY" in name
    ]
    assert secrets == [("POSTGRES_PASSWORD", "${POSTGRES_PASSWORD:-lorauter}")]
    assert "the password is known to everybody who reads this file" in COMPOSE.read_text()


def test_exported_addresses_are_those_of_the_published_ports() -> None:
    head = COMPOSE.read_text().split("\nname:")[0]
    exported = dict(
        line.removeprefix("#   export ").split("=", 1) for line in head.splitlines() if "export " in line
    )
    published = {port.rsplit(":", 1)[0] for service in SERVICES.values() for port in service["ports"]}
    assert set(exported) == {"DATABASE_URL", "REDIS_URL", "QDRANT_URL"}
    for url in exported.values():
        address = url.split("//")[1].rpartition("@")[2].split("/")[0]
        assert address in published, url
