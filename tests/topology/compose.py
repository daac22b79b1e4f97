"""What docker-compose.yml says, with the variables of an env file filled in as compose does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
DEVELOPMENT = ROOT / "deploy" / "compose" / "dev.env"

VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<other>[^}]*))?\})")
"""``$$``, ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?error}``: all that the file uses."""


class VariableMissing(Exception):
    """A variable without a default is not set; says what to do."""


@dataclass(frozen=True, slots=True)
class Mount:
    """What a container sees at ``target``: a folder or file of the host, or a volume by its name."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Container:
    """One service of the file."""

    name: str
    environment: Mapping[str, str]
    command: tuple[str, ...]
    mounts: tuple[Mount, ...]
    needs: tuple[str, ...]
    published: tuple[str, ...]
    """Host address, host port and container port: ``127.0.0.1:8080:8080``."""
    document: Mapping[str, Any]
    """All of it, filled in."""

    @property
    def dockerfile(self) -> str:
        """Name of the Dockerfile that makes its image, without suffix; empty for others' images."""
        return Path(self.document.get("build", {}).get("dockerfile", "")).stem


def read_variables(path: Path) -> dict[str, str]:
    """Returns the variables of an env file."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def containers(variables: Mapping[str, str]) -> dict[str, Container]:
    """Returns the services of docker-compose.yml by name; raises VariableMissing."""
    documents = filled(yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"], variables)
    return {name: _container(name, document) for name, document in documents.items()}


def filled(value: Any, variables: Mapping[str, str]) -> Any:
    """Returns a document with the variables in its texts replaced; raises VariableMissing."""
    if isinstance(value, Mapping):
        return {key: filled(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, variables) for each in value]
    return VARIABLE.sub(lambda found: _filled(found, variables), value) if isinstance(value, str) else value


def _filled(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found["dollar"]:
        return "$"
    given = variables.get(found["name"], "")
    if found["how"] == ":?" and not given:
        raise VariableMissing(f"{found['name']}: {found['other']}")
    return given or (found["other"] or "")


def _container(name: str, document: Mapping[str, Any]) -> Container:
    return Container(
        name=name,
        environment=document.get("environment", {}),
        command=tuple(document.get("command", ())),
        mounts=tuple(_mount(text) for text in document.get("volumes", ())),
        needs=tuple(document.get("depends_on", ())),
        published=tuple(document.get("ports", ())),
        document=document,
    )


def _mount(text: str) -> Mount:
    source, target, *options = text.split(":")
    return Mount(source, target, options == ["ro"])
