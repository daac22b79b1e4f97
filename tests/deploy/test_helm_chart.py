"""The Helm chart lints, renders what Kubernetes accepts, and sets what the services read."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from lorauter.settings import ServiceSettings

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "lorauter"
LEAST: dict[str, Any] = yaml.safe_load((CHART / "ci" / "values.yaml").read_text())
KUBERNETES_VERSIONS = ("1.27", "1.37")
COMPONENTS = {"registry", "worker-index", "worker-matching", "router", "gateway"}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns every object of the chart."""
    with Chart.load(CHART) as chart:
        files = chart.render(values, name="test", namespace="tests")
    documents = [yaml.safe_load_all(text) for name, text in files.items() if name.endswith(".yaml")]
    return [document for group in documents for document in group if document]


def with_value(path: str, value: object) -> dict[str, Any]:
    """Returns the least values with one changed."""
    values = copy.deepcopy(LEAST)
    *folders, leaf = path.split(".")
    inner = values
    for folder in folders:
        inner = inner.setdefault(folder, {})
    inner[leaf] = value
    return values


OBJECTS = render(LEAST)
WORKLOADS = [found for found in OBJECTS if found["kind"] in {"Deployment", "Job"}]
DEPLOYMENTS = [found for found in OBJECTS if found["kind"] == "Deployment"]


def name_of(found: dict[str, Any]) -> str:
    """Returns kind and name, for test ids."""
    return f"{found['kind']}-{found['metadata']['name']}"


def container(workload: dict[str, Any]) -> dict[str, Any]:
    """Returns the only container of a workload."""
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    result: dict[str, Any] = only
    return result


every_workload = pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
every_deployment = pytest.mark.parametrize("workload", DEPLOYMENTS, ids=name_of)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_chart_lints_without_warning(version: str) -> None:
    report = lint(CHART, LEAST, strict=True, kube_version=f"v{version}.0")
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("found", OBJECTS, ids=name_of)
def test_object_keeps_to_the_schema_of_kubernetes(found: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(found, version, strict=True)


def test_every_component_is_deployed_once() -> None:
    assert {d["metadata"]["labels"]["app.kubernetes.io/component"] for d in DEPLOYMENTS} == COMPONENTS
    assert len({name_of(found) for found in OBJECTS}) == len(OBJECTS)


@pytest.mark.parametrize(
    "missing",
    [
        "image.repository",
        "image.tag",
        "database.existingSecret",
        "redis.existingSecret",
        "qdrant.existingSecret",
    ],
)
def test_rendering_says_what_is_missing_when_a_value_has_no_default(missing: str) -> None:
    with pytest.raises(HelmError, match=f"{missing} is missing"):
        render(with_value(missing, ""))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("image.tag", "latest", "image.tag is latest"),
        ("registry.replicas", 2, "adapterStore can be mounted once"),
        ("drainSeconds", -1, "drainSeconds"),
        ("router.replica", 3, "replica"),
        ("loglevel", "info", "loglevel"),
        ("decisions.detail", "all", "detail"),
    ],
)
def test_rendering_refuses_a_wrong_value(path: str, value: object, message: str) -> None:
    with pytest.raises(HelmError, match=message):
        render(with_value(path, value))


@every_workload
def test_pod_runs_without_privileges(workload: dict[str, Any]) -> None:
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@every_workload
def test_image_and_resources_are_stated(workload: dict[str, Any]) -> None:
    image, _, tag = container(workload)["image"].rpartition(":")
    assert image.startswith("registry.example/lorauter-")
    assert tag == LEAST["image"]["tag"]
    resources = container(workload)["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert "memory" in resources["limits"]


@every_deployment
def test_probes_tell_alive_from_ready(workload: dict[str, Any]) -> None:
    found = container(workload)
    assert found["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert found["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert found["readinessProbe"]["httpGet"]["path"] == "/readyz"


@every_deployment
def test_service_selects_the_pods_of_its_component(workload: dict[str, Any]) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    selector = workload["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    ports = {port["name"] for port in container(workload)["ports"]}
    for service in (found for found in OBJECTS if found["kind"] == "Service"):
        if service["metadata"]["name"] == workload["metadata"]["name"]:
            assert service["spec"]["selector"] == selector
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@every_deployment
def test_variables_are_those_that_the_service_reads(workload: dict[str, Any]) -> None:
    service = container(workload)["name"]
    settings: type[ServiceSettings] = importlib.import_module(f"lorauter_{service}.config").Settings
    known = {settings.variable_name(field): info for field, info in settings.model_fields.items()}
    given = [variable["name"] for variable in container(workload)["env"]]
    assert len(given) == len(set(given))
    assert set(given) <= set(known), "the service does not read this variable"
    assert {name for name, info in known.items() if info.is_required()} <= set(given)


@every_deployment
def test_values_are_those_that_the_service_takes(
    workload: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "DATABASE_URL": "postgresql://user@host/name",
        "REDIS_URL": "redis://host/0",
        "QDRANT_URL": "http://host:6333",
    }
    for variable in container(workload)["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value") or secrets[variable["name"]])
    service = container(workload)["name"]
    settings: type[ServiceSettings] = importlib.import_module(f"lorauter_{service}.config").Settings
    assert settings.load().http_port == 8080


def test_migration_runs_before_the_services_change() -> None:
    (job,) = (found for found in OBJECTS if found["kind"] == "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert container(job)["command"] == ["lorauter-registry", "migrate"]
    assert [variable["name"] for variable in container(job)["env"]] == ["DATABASE_URL"]


def test_addresses_come_from_secrets_only() -> None:
    urls = [
        variable
        for workload in WORKLOADS
        for variable in container(workload)["env"]
        if variable["name"].endswith("_URL")
    ]
    assert urls
    assert all("secretKeyRef" in variable["valueFrom"] for variable in urls)


@pytest.mark.parametrize(
    ("path", "value", "writers"),
    [
        ("adapterStore.accessModes", ["ReadWriteOnce"], {"registry"}),
        ("adapterStore.accessModes", ["ReadWriteMany"], {"registry", "worker-index"}),
        ("adapterStore.existingClaim", "shared", {"registry", "worker-index"}),
    ],
)
def test_the_adapter_store_is_mounted_by_who_writes_it(path: str, value: object, writers: set[str]) -> None:
    deployments = [found for found in render(with_value(path, value)) if found["kind"] == "Deployment"]
    mounting, told = set(), set()
    for found in deployments:
        component = found["metadata"]["labels"]["app.kubernetes.io/component"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container(found)["volumeMounts"]}
        variables = {variable["name"]: variable.get("value") for variable in container(found)["env"]}
        mounting |= {component} if "adapters" in mounts else set()
        told |= {component} if "LORAUTER_ADAPTER_STORE" in variables else set()
        assert mounts.get("adapters") == variables.get("LORAUTER_ADAPTER_STORE")
    assert mounting == told == writers
