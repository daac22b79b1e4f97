"""Writes docs/settings.md from the services' settings classes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from lorauter.settings import ServiceSettings

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "settings.md"
SERVICES = ("registry", "worker", "router", "gateway", "engine")

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
    return f"`{_cell(str(default))}`" if default not in ("", None, [], ()) else "none"


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


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
