"""Renders the Helm chart for its tests: each values file once, changed ones when they are asked for."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart
from helm_python.errors import HelmError

from lorauter.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "lorauter"
KUBERNETES_VERSIONS = ("1.27", "1.37")
"""The oldest that the chart is for, and the newest whose schemas are installed."""

Object = dict[str, Any]
Values = dict[str, Any]

LEAST = "ci/values.yaml"
DEV = "examples/dev.yaml"
ONE_GPU = "examples/one-gpu.yaml"
MANY_GPUS = "examples/many-gpus.yaml"
FILES = (LEAST, DEV, ONE_GPU, MANY_GPUS)

COMPONENT = "app.kubernetes.io/component"
SERVER = "lorauter/server"
SERVICES = {"registry", "worker-index", "worker-matching", "router", "gateway"}


def values_of(name: str, *changes: tuple[str, object]) -> Values:
    """Returns a values file with changes: ("path.to.value", value); a number in a path is a list's index."""
    values: Values = copy.deepcopy(_read(name))
    for path, value in changes:
        *folders, leaf = path.split(".")
        inner: Any = values
        for folder in folders:
            inner = inner[int(folder)] if folder.isdigit() else inner.setdefault(folder, {})
        inner[leaf] = value
    return values


@functools.cache
def _read(name: str) -> Values:
    values: Values = yaml.safe_load((CHART / name).read_text())
    return values


def render(values: Values) -> list[Object]:
    """Returns every object of the chart; raises HelmError."""
    files = _chart().render(values, name="test", namespace="tests")
    documents = [
        yaml.load_all(text, yaml.CSafeLoader) for name, text in files.items() if name.endswith(".yaml")
    ]
    return [document for group in documents for document in group if document]


@functools.cache
def _chart() -> Chart:
    return Chart.load(CHART)


@functools.cache
def rendered(name: str) -> Sequence[Object]:
    """Returns every object of the chart with a values file."""
    return render(_read(name))


def changed(name: str, *changes: tuple[str, object]) -> list[Object]:
    """Returns every object of the chart with a values file and changes to it."""
    return render(values_of(name, *changes))


def refusal(name: str, *changes: tuple[str, object]) -> str:
    """Returns what the render says as it refuses a values file with changes."""
    try:
        changed(name, *changes)
    except HelmError as error:
        return str(error)
    raise AssertionError(f"{name} with {changes} renders")


def name_of(found: Object) -> str:
    """Returns kind and name, for messages and ids."""
    return f"{found['kind']}/{found['metadata']['name']}"


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    """Returns the objects of some kinds."""
    return [found for found in objects if found["kind"] in kinds]


def component_of(found: Object) -> str:
    """Returns the component that an object belongs to, or the inference server."""
    labels: dict[str, str] = found["metadata"]["labels"]
    return labels.get(SERVER) or labels[COMPONENT]


def deployments(objects: Sequence[Object]) -> dict[str, Object]:
    """Returns the Deployments by component or inference server."""
    return {component_of(found): found for found in of_kind(objects, "Deployment")}


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Yields a name, the metadata and the spec of everything that has pods."""
    for found in of_kind(objects, "Deployment", "Job", "Pod"):
        template = found if found["kind"] == "Pod" else found["spec"]["template"]
        yield name_of(found), template["metadata"], template["spec"]


def containers(spec: Object) -> list[Object]:
    """Returns all containers of a pod, those that start before the others included."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def main_container(deployment: Object) -> Object:
    """Returns the container of a Deployment that is its purpose."""
    first: Object = deployment["spec"]["template"]["spec"]["containers"][0]
    return first


def variables(container: Object) -> dict[str, Any]:
    """Returns a container's environment: the value, or where it comes from, by variable."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def settings_of(service: str) -> type[ServiceSettings]:
    """Returns a service's settings class."""
    found: type[ServiceSettings] = importlib.import_module(f"lorauter_{service}.config").Settings
    return found


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Returns whether a label selector takes these labels."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )
