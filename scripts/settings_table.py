"""Writes docs/settings.md and what the Helm chart's schema knows of settings, from the settings classes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from lorauter.settings import ServiceSettings

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "settings.md"
SERVICES = ("registry", "worker", "router", "gateway", "engine")

CHART_SCHEMA = ROOT / "deploy" / "helm" / "lorauter" / "values.schema.json"
SCHEMA_WIDTH = 120
SET_BY_CHART = frozenset(
    (
        *("DATABASE_URL", "REDIS_URL", "QDRANT_URL"),
        *("LORAUTER_HOST", "LORAUTER_HTTP_PORT", "LORAUTER_GRPC_PORT", "LORAUTER_LOG_LEVEL"),
        *("LORAUTER_DRAIN_SECONDS", "LORAUTER_TENANT", "LORAUTER_ACCESS", "LORAUTER_REGISTRY_ADDRESS"),
        *("LORAUTER_BOOTSTRAP_KEY", "LORAUTER_GATEWAY_KEY", "LORAUTER_API_KEY", "LORAUTER_BACKEND_KEY"),
        "LORAUTER_ROUTER_ADDRESS",
        *("LORAUTER_TLS_CERTIFICATE", "LORAUTER_TLS_KEY", "LORAUTER_TLS_CLIENT_CA", "LORAUTER_TLS_CA"),
        *("LORAUTER_ADAPTER_STORE", "LORAUTER_QUEUES", "LORAUTER_MODEL", "LORAUTER_MODEL_ID"),
        *("LORAUTER_ENCODER", "LORAUTER_ENCODER_PRECISION"),
        *("LORAUTER_DECISION_DETAIL", "LORAUTER_DECISION_DAYS", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        "LORAUTER_BACKEND_HOSTS",
    )
)
"""Variables that the chart's templates set from values of their own, or from Secrets: not to be set twice."""

INTRODUCTION = """# Settings

Services are configured by environment variables alone. A wrong value stops a service at its start with the
variable's name and exit status 2. `make settings` writes this page from the code.
"""

COMMAND = """
## The command `lorauter`

| variable | default | meaning |
|---|---|---|
| `LORAUTER_DATA` | `.lorauter` | Data directory of the embedded suite. |
| `LORAUTER_REGISTRY_ADDRESS` | the embedded suite's | gRPC address, `host:port`; clients read it too. |
| `LORAUTER_ROUTER_ADDRESS` | the embedded suite's | The same of the router. |
| `LORAUTER_GATEWAY_ADDRESS` | the embedded suite's | The same of the gateway. |
| `LORAUTER_REGISTRY_URL` | the embedded suite's | HTTP address of the registry, for `task put`. |
| `LORAUTER_API_KEY` | the embedded suite's | The key that it shows; clients read it too. |
| `DATABASE_URL`, `REDIS_URL`, `QDRANT_URL` | embedded | Your own servers, which `lorauter up` then uses. |
"""


def settings_of(service: str) -> type[ServiceSettings]:
    """Returns a service's settings class."""
    found: type[ServiceSettings] = importlib.import_module(f"lorauter_{service}.config").Settings
    return found


def rows(settings: type[ServiceSettings], names: Iterator[str]) -> Iterator[str]:
    """Yields a table row for each field."""
    for name in names:
        field = settings.model_fields[name]
        variable = settings.variable_name(name)
        yield f"| `{variable}` | {_default(field)} | {_cell(field.description or '')} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    return f"`{_cell(str(default))}`" if default not in ("", None, [], (), SecretStr("")) else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def page() -> str:
    """Returns the whole page."""
    head = "\n| variable | default | meaning |\n|---|---|---|\n"
    shared = list(ServiceSettings.model_fields)
    parts = [INTRODUCTION, "\n## All services\n", head, "\n".join(rows(ServiceSettings, iter(shared))), "\n"]
    for service in SERVICES:
        settings = settings_of(service)
        own = (name for name in settings.model_fields if name not in shared)
        parts += [f"\n## {service}\n", head, "\n".join(rows(settings, own)), "\n"]
    return "".join([*parts, COMMAND])


def chart_schema() -> str:
    """Returns the schema of the chart's values, with the settings that a service may be given besides."""
    schema = json.loads(CHART_SCHEMA.read_text(encoding="utf-8"))
    for service in SERVICES:
        settings = settings_of(service)
        names = {settings.variable_name(name): field for name, field in settings.model_fields.items()}
        schema["$defs"][f"{service}Settings"] = {
            "description": "Written by `make settings`.",
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {"description": field.description or "", "type": ["string", "number", "boolean"]}
                for name, field in names.items()
                if name not in SET_BY_CHART
            },
        }
    return _json(schema) + "\n"


def _json(value: Any, indent: int = 0, name: str = "") -> str:
    """Returns JSON, after ``name``, in which only what is too long for a line is spread over several."""
    line = f"{name}{json.dumps(value, ensure_ascii=False)}"
    if len(line) + indent < SCHEMA_WIDTH or not isinstance(value, dict | list):
        return line
    inner = indent + 2
    if isinstance(value, dict):
        parts = [_json(part, inner, f"{json.dumps(key)}: ") for key, part in value.items()]
    else:
        parts = [_json(part, inner) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = ",\n".join(" " * inner + part for part in parts)
    return f"{name}{opening}\n{lines}\n{' ' * indent}{closing}"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    CHART_SCHEMA.write_text(chart_schema(), encoding="utf-8")
