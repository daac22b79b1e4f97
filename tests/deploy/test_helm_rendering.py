"""The chart lints, and renders what Kubernetes and the kinds of operators accept, over many values."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import jsonschema
import kubernetes_validate.utils
import pytest
import yaml
from helm_python.chart import Chart, lint, package

from tests.deploy.charts import (
    CHART,
    DEV,
    FILES,
    KUBERNETES_VERSIONS,
    LEAST,
    MANY_GPUS,
    ONE_GPU,
    ROOT,
    Object,
    changed,
    deployments,
    name_of,
    of_kind,
    rendered,
    values_of,
)

# it would read all definitions of Kubernetes, several megabytes, for every object
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

SCHEMAS = json.loads((ROOT / "tests" / "deploy" / "custom_kinds.json").read_text())

every_file = pytest.mark.parametrize("name", FILES)

SWITCHES: dict[str, tuple[tuple[str, object], ...]] = {
    "keys off": (("access.mode", "open"),),
    "policies off": (("networkPolicy.enabled", False),),
    "TLS": (("tls.existingSecret", "tls"), ("tls.mutual", False)),
    "mutual TLS": (("tls.existingSecret", "tls"), ("tls.mutual", True)),
    "autoscaling": (
        *(("gateway.autoscaling.enabled", True), ("router.autoscaling.enabled", True)),
        *(("gateway.autoscaling.maxReplicas", 4), ("router.autoscaling.maxReplicas", 4)),
    ),
    "shared store": (("adapterStore.existingClaim", "shared"),),
    "digests": (("image.digests", {"router": f"sha256:{'0' * 64}"}),),
    "Ingress": (
        ("ingress", {"enabled": True, "host": "llm.example.com", "tlsSecret": "llm"}),
        ("networkPolicy.callers.gateway", [{"podSelector": {}}]),
    ),
}

CONTRADICTORY = [{"keys off", "Ingress"}, {"TLS", "mutual TLS"}]
PAIRS = [pair for pair in itertools.combinations(SWITCHES, 2) if set(pair) not in CONTRADICTORY]


def faults_in(found: Object, version: str) -> str:
    """Returns what is wrong with an object by the schema of its kind."""
    return _faults_in(json.dumps(found), version)


@functools.cache
def _faults_in(text: str, version: str) -> str:
    found = json.loads(text)
    if found["kind"] in SCHEMAS:
        validator = jsonschema.Draft202012Validator(SCHEMAS[found["kind"]])
        return "; ".join(error.message for error in validator.iter_errors(found))
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except Exception as error:
        return str(error)
    return ""


@every_file
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_chart_lints_without_warning(name: str, version: str) -> None:
    report = lint(CHART, values_of(name), strict=True, kube_version=f"v{version}.0")
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@every_file
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_object_keeps_to_the_schema_of_its_kind(name: str, version: str) -> None:
    faults = {name_of(found): faults_in(found, version) for found in rendered(name)}
    assert {found: fault for found, fault in faults.items() if fault} == {}


def test_schemas_notice_what_is_wrong() -> None:
    (service, *_) = of_kind(rendered(LEAST), "Service")
    assert faults_in({**service, "spec": {**service["spec"], "portz": []}}, "1.37")
    for found in of_kind(rendered(MANY_GPUS), *SCHEMAS):
        assert not faults_in(found, "1.37")
        assert faults_in({**found, "spec": {**found["spec"], "surplus": 1}}, "1.37")


def test_every_kind_is_checked_by_a_schema() -> None:
    kinds = {found["kind"] for name in FILES for found in rendered(name)}
    assert set(SCHEMAS) <= kinds
    assert {"Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "Pod"} <= kinds


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-and-".join(pair).replace(" ", "-"))
def test_objects_keep_to_their_schemas_when_options_are_combined(pair: tuple[str, str]) -> None:
    objects = changed(LEAST, *SWITCHES[pair[0]], *SWITCHES[pair[1]])
    faults = {name_of(found): fault for found in objects if (fault := faults_in(found, "1.37"))}
    assert faults == {}
    assert len({name_of(found) for found in objects}) == len(objects)


@every_file
def test_every_object_has_a_name_of_its_own_and_all_labels(name: str) -> None:
    objects = rendered(name)
    assert len({name_of(found) for found in objects}) == len(objects)
    for found in objects:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "test", name_of(found)
        assert labels["app.kubernetes.io/version"], name_of(found)
        assert len(found["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (LEAST, set()),
        (DEV, {"engine", "postgres", "redis", "qdrant"}),
        (ONE_GPU, {"vllm"}),
        (MANY_GPUS, {"tgi-support", "vllm-code"}),
    ],
)
def test_every_component_is_deployed_once(name: str, parts: set[str]) -> None:
    services = {"registry", "worker-index", "worker-matching", "router", "gateway"}
    assert set(deployments(rendered(name))) == services | parts


def test_defaults_render_nothing_before_they_are_completed() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert defaults["image"]["tag"] == ""
    assert defaults["inference"] == []
    assert not defaults["dev"]["enabled"]
    assert not defaults["engine"]["enabled"]


def test_a_packed_chart_is_whole_and_renders_the_same(tmp_path: Path) -> None:
    archive = package(CHART, destination=tmp_path)
    with Chart.load(archive) as chart:
        files = chart.render(values_of(MANY_GPUS), name="test", namespace="tests")
        carried = {file["name"] for file in chart.files}
    documents = [yaml.safe_load_all(text) for name, text in files.items() if name.endswith(".yaml")]
    assert [found for group in documents for found in group if found] == list(rendered(MANY_GPUS))
    assert "files/alerts.yaml" in carried, "a link to elsewhere would be broken"
    assert not {name for name in carried if name.startswith("ci/")}
