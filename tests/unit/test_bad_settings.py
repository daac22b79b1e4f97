"""A setting that is missing, wrong or against another stops a service at once, by name, with what to do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from lorauter.access import make_key
from lorauter.settings import ServiceSettings
from tests.topology.compose import DEVELOPMENT, containers, read_variables

CONTAINERS = containers(read_variables(DEVELOPMENT))
SECRET = "what-nobody-may-read"

CASES: list[tuple[str, dict[str, str | None], list[str]]] = [
    # a secret or an address that is missing
    ("registry", {"DATABASE_URL": None}, ["DATABASE_URL: not set", "postgresql://user@host:port/name"]),
    ("registry", {"REDIS_URL": None}, ["REDIS_URL: not set", "redis://host:port/0"]),
    ("registry", {"LORAUTER_ADAPTER_STORE": None}, ["LORAUTER_ADAPTER_STORE: not set", "Folder"]),
    ("worker", {"QDRANT_URL": None}, ["QDRANT_URL: not set", "http://host:6333"]),
    ("router", {"QDRANT_URL": None}, ["QDRANT_URL: not set"]),
    ("router", {"LORAUTER_REGISTRY_ADDRESS": None}, ["LORAUTER_REGISTRY_ADDRESS", "LORAUTER_ACCESS=open"]),
    ("gateway", {"LORAUTER_REGISTRY_ADDRESS": ""}, ["LORAUTER_REGISTRY_ADDRESS", "host:port"]),
    ("gateway", {"LORAUTER_ROUTER_ADDRESS": None}, ["LORAUTER_ROUTER_ADDRESS: not set", "host:port"]),
    ("gateway", {"LORAUTER_API_KEY": None}, ["LORAUTER_API_KEY: not set", "LORAUTER_GATEWAY_KEY"]),
    ("engine", {"LORAUTER_MODEL": None}, ["LORAUTER_MODEL: not set", "Folder of the base model"]),
    # one that is wrong
    ("registry", {"DATABASE_URL": "mysql://u@h/d"}, ["DATABASE_URL: URL scheme", "postgresql"]),
    ("registry", {"DATABASE_URL": f"lorauter:{SECRET}"}, ["DATABASE_URL: ", "postgresql"]),
    ("registry", {"REDIS_URL": "redis://"}, ["REDIS_URL: ", "redis://host:port/0"]),
    ("registry", {"LORAUTER_BOOTSTRAP_KEY": SECRET}, ["LORAUTER_BOOTSTRAP_KEY: ", "lra_<id>_<secret>"]),
    ("registry", {"LORAUTER_HUB_ENDPOINT": "the-hub"}, ["LORAUTER_HUB_ENDPOINT: ", "https://"]),
    ("worker", {"QDRANT_URL": "qdrant:6333"}, ["QDRANT_URL: ", "http://host:6333"]),
    ("worker", {"LORAUTER_QUEUES": "indexing"}, ["LORAUTER_QUEUES: ", "'index'", "'matching'"]),
    ("worker", {"LORAUTER_MATCHING_STRATEGY": "best"}, ["LORAUTER_MATCHING_STRATEGY", "exhaustive"]),
    ("worker", {"LORAUTER_BACKEND_KEY": "two words"}, ["LORAUTER_BACKEND_KEY: ", "without spaces"]),
    ("router", {"QDRANT_URL": "ftp://qdrant"}, ["QDRANT_URL: URL scheme", "https"]),
    ("router", {"LORAUTER_DECISION_DETAIL": "all"}, ["LORAUTER_DECISION_DETAIL: ", "'features'"]),
    ("gateway", {"LORAUTER_ROUTER_ADDRESS": "router"}, ["LORAUTER_ROUTER_ADDRESS: ", "host:port"]),
    ("gateway", {"LORAUTER_ACCESS": "none"}, ["LORAUTER_ACCESS: ", "'keys' or 'open'"]),
    ("gateway", {"LORAUTER_QUOTA_FALLBACK": "maybe"}, ["LORAUTER_QUOTA_FALLBACK: ", "'refuse' or 'allow'"]),
    ("engine", {"LORAUTER_HTTP_PORT": "99999"}, ["LORAUTER_HTTP_PORT: ", "65535"]),
    ("engine", {"LORAUTER_DEVICE": "tpu"}, ["LORAUTER_DEVICE: ", "cuda"]),
    ("engine", {"LORAUTER_LOG_LEVEL": "loud"}, ["LORAUTER_LOG_LEVEL: ", "warning"]),
    # values that contradict each other
    ("router", {"LORAUTER_GRPC_PORT": "8080"}, ["LORAUTER_HTTP_PORT and LORAUTER_GRPC_PORT", "give two"]),
    ("worker", {"LORAUTER_HEARTBEAT_SECONDS": "9"}, ["LORAUTER_HEARTBEAT_SECONDS", "LORAUTER_LEASE_SECONDS"]),
    ("worker", {"LORAUTER_MATCHING_RATE": "0.01"}, ["LORAUTER_MATCHING_RATE", "0 or at least 0.1"]),
    ("engine", {"LORAUTER_RESERVED_ROWS": "256"}, ["LORAUTER_RESERVED_ROWS", "less than LORAUTER_MAX_ROWS"]),
]


@pytest.mark.parametrize(
    ("service", "change", "said"),
    CASES,
    ids=[f"{case[0]}-{'-'.join(case[1])}-{n}" for n, case in enumerate(CASES)],
)
def test_service_stops_and_says_which_setting_it_is(
    service: str,
    change: dict[str, str | None],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = sound(service, monkeypatch)
    for name, value in change.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        settings.load()
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert all(words in printed for words in said), printed
    assert SECRET not in printed


def sound(service: str, monkeypatch: pytest.MonkeyPatch) -> type[ServiceSettings]:
    """Sets a service's environment as docker-compose.yml does; returns its settings, which take that."""
    settings: type[ServiceSettings] = import_module(f"lorauter_{service}.config").Settings
    for field in settings.model_fields:
        monkeypatch.delenv(settings.variable_name(field), raising=False)
    for name, value in CONTAINERS[{"worker": "worker-index"}.get(service, service)].environment.items():
        monkeypatch.setenv(name, value)
    settings.load()
    return settings


def test_whole_key_is_not_shown_by_what_refuses_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = sound("gateway", monkeypatch)
    key = make_key()
    monkeypatch.setenv("LORAUTER_API_KEY", key)
    monkeypatch.setenv("LORAUTER_TLS_CA", str(tmp_path / "nowhere.pem"))
    with pytest.raises(SystemExit):
        settings.load()
    printed = capsys.readouterr().err
    assert "LORAUTER_TLS_CA" in printed
    assert key not in printed
