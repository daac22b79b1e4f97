"""Migrating before pods start, who writes the store, the parts of `dev`, watching, testing a release."""

from __future__ import annotations

import re

import pytest
import yaml

from lorauter_registry.main import main as registry
from tests.deploy.charts import (
    CHART,
    DEV,
    FILES,
    LEAST,
    MANY_GPUS,
    ROOT,
    Object,
    changed,
    component_of,
    deployments,
    main_container,
    of_kind,
    rendered,
    selects,
    variables,
)

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
WITH_DATABASE = {"registry", "worker-index", "worker-matching"}


def job(objects: list[Object], component: str) -> Object:
    """Returns a component's Job."""
    (found,) = (each for each in of_kind(objects, "Job") if component_of(each) == component)
    return found


@pytest.mark.parametrize("name", FILES)
def test_pods_with_the_database_wait_for_their_schema(name: str) -> None:
    for component, found in deployments(rendered(name)).items():
        starting = found["spec"]["template"]["spec"].get("initContainers", [])
        waiting = [each for each in starting if each["name"] == "wait-for-schema"]
        assert bool(waiting) == (component in WITH_DATABASE), component
        for each in waiting:
            assert each["command"][:3] == ["lorauter-registry", "migrate", "--wait"]
            assert set(variables(each)) == {"DATABASE_URL"}
            assert starting[0] is each


def test_the_registry_knows_the_commands_of_the_chart(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_postgres_url)
    container = job(list(rendered(LEAST)), "migrate")["spec"]["template"]["spec"]["containers"][0]
    waiting = deployments(rendered(LEAST))["registry"]["spec"]["template"]["spec"]["initContainers"][0]
    registry(container["command"][1:])
    registry(waiting["command"][1:])


def test_the_migration_is_no_hook_and_runs_for_every_version() -> None:
    before, after = (job(changed(LEAST, ("image.tag", tag)), "migrate") for tag in ("0.1.0", "0.2.0"))
    assert "annotations" not in before["metadata"]
    assert before["metadata"]["name"] != after["metadata"]["name"]
    again = job(changed(LEAST, ("drainSeconds", 7)), "migrate")
    assert again == before, "what does not concern it does not run it again"


@pytest.mark.parametrize(
    "change",
    [
        ("database.existingSecret", "other"),
        ("image.pullPolicy", "Always"),
        ("image.digests", {"registry": f"sha256:{'1' * 64}"}),
    ],
)
def test_a_job_that_changes_has_another_name(change: tuple[str, object]) -> None:
    before, after = job(list(rendered(LEAST)), "migrate"), job(changed(LEAST, change), "migrate")
    assert before["spec"]["template"]["spec"] != after["spec"]["template"]["spec"]
    assert before["metadata"]["name"] != after["metadata"]["name"]


@pytest.mark.parametrize(
    ("path", "value", "writers"),
    [
        ("adapterStore.accessModes", ["ReadWriteOnce"], {"registry"}),
        ("adapterStore.accessModes", ["ReadWriteMany"], {"registry", "worker-index"}),
        ("adapterStore.existingClaim", "shared", {"registry", "worker-index"}),
    ],
)
def test_the_adapter_store_is_mounted_by_who_writes_it(path: str, value: object, writers: set[str]) -> None:
    mounting, told = set(), set()
    for component, found in deployments(changed(LEAST, (path, value))).items():
        container = main_container(found)
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        mounting |= {component} if "adapters" in mounts else set()
        told |= {component} if "LORAUTER_ADAPTER_STORE" in variables(container) else set()
        assert mounts.get("adapters") == variables(container).get("LORAUTER_ADAPTER_STORE")
    assert mounting == told == writers


def test_the_store_outlives_the_release_unless_it_was_there_before() -> None:
    (claim,) = of_kind(rendered(LEAST), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not of_kind(changed(LEAST, ("adapterStore.existingClaim", "shared")), "PersistentVolumeClaim")


def test_the_parts_of_dev_are_those_of_the_compose_file() -> None:
    for component in ("postgres", "redis", "qdrant"):
        image = main_container(deployments(rendered(DEV))[component])["image"]
        composed = COMPOSE["services"][component]["image"]
        plain = re.sub(r"^docker\.io/(library/)?|-unprivileged$", "", image)
        assert plain == composed
    assert not {"postgres", "redis", "qdrant"} & set(deployments(rendered(LEAST)))


def test_the_parts_of_dev_keep_their_data_where_they_are_told_to() -> None:
    claims = {
        component_of(each) for each in of_kind(changed(DEV, ("dev.storage", "5Gi")), "PersistentVolumeClaim")
    }
    assert claims == {"registry", "postgres", "qdrant"}
    assert {component_of(each) for each in of_kind(rendered(DEV), "PersistentVolumeClaim")} == {"registry"}


def test_the_demo_pool_lies_in_the_same_folder_for_all_who_read_it() -> None:
    found = deployments(rendered(DEV))
    folder = COMPOSE["services"]["seed"]["command"][-1]
    registry_roots = variables(main_container(found["registry"]))["LORAUTER_ADAPTER_ROOTS"]
    assert registry_roots == folder
    assert variables(main_container(found["engine"]))["LORAUTER_MODEL"] == f"{folder}/base"
    seed = job(list(rendered(DEV)), "seed")["spec"]["template"]["spec"]
    assert seed["containers"][0]["command"][-1] == folder
    for spec in (seed, *(found[each]["spec"]["template"]["spec"] for each in ("registry", "engine"))):
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounts["demo"] == folder
        assert any(each["name"] == "demo-files" for each in spec["initContainers"])


def test_an_engine_on_a_model_of_its_own_knows_no_demo() -> None:
    objects = changed(DEV, ("engine.modelClaim", "base"), ("engine.modelId", "my-org/my-base"))
    engine = deployments(objects)["engine"]
    assert variables(main_container(engine))["LORAUTER_MODEL"] == "/model"
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "base", "readOnly": True}} in engine[
        "spec"
    ]["template"]["spec"]["volumes"]
    assert "LORAUTER_ADAPTER_ROOTS" not in variables(main_container(deployments(objects)["registry"]))
    assert [component_of(each) for each in of_kind(objects, "Job")] == ["migrate"]


def test_the_engine_runs_where_the_store_is_mounted() -> None:
    affinity = deployments(rendered(DEV))["engine"]["spec"]["template"]["spec"]["affinity"]
    (term,) = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    registry_labels = deployments(rendered(DEV))["registry"]["spec"]["template"]["metadata"]["labels"]
    assert selects(term["labelSelector"], registry_labels)
    shared = changed(DEV, ("adapterStore.accessModes", ["ReadWriteMany"]))
    assert "affinity" not in deployments(shared)["engine"]["spec"]["template"]["spec"]


def test_every_service_is_scraped() -> None:
    monitors = of_kind(rendered(MANY_GPUS), "ServiceMonitor")
    scraped = {
        component_of(service)
        for service in of_kind(rendered(MANY_GPUS), "Service")
        for monitor in monitors
        if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
        and {port["name"] for port in service["spec"]["ports"]} >= {monitor["spec"]["endpoints"][0]["port"]}
    }
    assert scraped == set(deployments(rendered(MANY_GPUS))) - {"vllm-code"}
    assert {monitor["metadata"]["labels"]["release"] for monitor in monitors} == {"prometheus"}
    assert not of_kind(rendered(LEAST), "ServiceMonitor", "PrometheusRule")


def test_alerts_are_those_of_the_project() -> None:
    (rule,) = of_kind(rendered(MANY_GPUS), "PrometheusRule")
    source = ROOT / "deploy" / "observability" / "alerts.yaml"
    assert rule["spec"] == yaml.safe_load(source.read_text())
    assert (CHART / "files" / "alerts.yaml").read_bytes() == source.read_bytes()


def test_the_sampler_of_traces_can_be_chosen() -> None:
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": 0.25}
    given = variables(main_container(deployments(changed(MANY_GPUS, ("traces.config", sampler)))["router"]))
    assert given["OTEL_TRACES_SAMPLER"] == "parentbased_traceidratio"
    assert given["OTEL_TRACES_SAMPLER_ARG"] == "0.25"


def test_traces_go_where_they_are_told_to() -> None:
    for name, endpoint in ((MANY_GPUS, "http://collector.monitoring:4318"), (LEAST, None)):
        for component in ("registry", "worker-index", "worker-matching", "router", "gateway"):
            given = variables(main_container(deployments(rendered(name))[component]))
            assert given.get("OTEL_EXPORTER_OTLP_ENDPOINT") == endpoint, component


def test_a_release_is_tested_by_a_pod_of_its_own() -> None:
    (pod,) = of_kind(rendered(LEAST), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"
    (script,) = pod["spec"]["containers"][0]["args"]
    steps = ["task create", "task put", "--wait embedded", "lorauter route", "lorauter generate"]
    places = [script.index(step) for step in steps]
    assert places == sorted(places)
    assert "trap 'lorauter task delete" in script


def test_rendering_again_changes_nothing() -> None:
    assert changed(DEV) == list(rendered(DEV)), "an upgrade without a change would replace pods"
