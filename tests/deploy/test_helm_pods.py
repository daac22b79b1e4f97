"""What every pod of the chart is promised: privileges, resources, probes, draining, spreading, budgets."""

from __future__ import annotations

import re

import pytest

from tests.deploy.charts import (
    COMPONENT,
    DEV,
    FILES,
    LEAST,
    MANY_GPUS,
    ROOT,
    SERVER,
    Object,
    changed,
    component_of,
    containers,
    deployments,
    main_container,
    name_of,
    of_kind,
    pods,
    rendered,
    selects,
    variables,
)

every_file = pytest.mark.parametrize("name", FILES)
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"} | {
    *("projected", "secret")
}
"""Kinds of volume that the profile `restricted` of the Pod Security Standards takes."""
ROOTLESS = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
HOST_FIELDS = {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}


@every_file
def test_pods_keep_to_the_restricted_profile(name: str) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/
    for pod, _, spec in pods(rendered(name)):
        assert ROOTLESS.items() <= spec["securityContext"].items(), pod
        assert spec["securityContext"]["runAsUser"] > 0, pod
        assert not HOST_FIELDS & set(spec), pod
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= RESTRICTED_VOLUMES, pod
        for each in containers(spec):
            assert each["securityContext"]["allowPrivilegeEscalation"] is False, pod
            assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}, pod
            assert all("hostPort" not in port for port in each.get("ports", [])), pod


@every_file
def test_file_systems_are_read_only_but_for_mounted_folders(name: str) -> None:
    for pod, _, spec in pods(rendered(name)):
        volumes = {volume["name"] for volume in spec["volumes"]}
        for each in containers(spec):
            assert each["securityContext"]["readOnlyRootFilesystem"] is True, pod
            mounts = {mount["name"]: mount["mountPath"] for mount in each["volumeMounts"]}
            assert set(mounts) <= volumes, pod
            assert len(set(mounts.values())) == len(mounts), pod
            assert "/tmp" in mounts.values() or each["name"] == "demo-files", pod


@every_file
def test_pods_have_no_token_for_the_cluster(name: str) -> None:
    (account,) = of_kind(rendered(name), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for pod, _, spec in pods(rendered(name)):
        assert spec["automountServiceAccountToken"] is False, pod
        assert spec["serviceAccountName"] == account["metadata"]["name"], pod
        assert spec["enableServiceLinks"] is False, pod
    assert not of_kind(rendered(name), "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


@every_file
def test_images_name_exact_versions(name: str) -> None:
    for pod, _, spec in pods(rendered(name)):
        for each in containers(spec):
            assert re.search(r":v?\d+(\.\d+)+[\w.-]*$|@sha256:[0-9a-f]{64}$", each["image"]), pod


def test_own_images_are_those_that_have_a_dockerfile() -> None:
    made = {
        path.name.removesuffix(".Dockerfile") for path in (ROOT / "deploy" / "docker").glob("*.Dockerfile")
    }
    prefix = "registry.example/lorauter-"
    used = {
        each["image"].removeprefix(prefix).partition(":")[0]
        for _, _, spec in pods(rendered(DEV))
        for each in containers(spec)
        if each["image"].startswith(prefix)
    }
    assert used == made


def test_pods_run_as_the_user_of_the_images() -> None:
    for path in (ROOT / "deploy" / "docker").glob("*.Dockerfile"):
        assert "\nUSER 65532:65532\n" in path.read_text(), path.name
    for pod, _, spec in pods(rendered(LEAST)):
        assert spec["securityContext"]["runAsUser"] == 65532, pod


@every_file
def test_resources_are_stated(name: str) -> None:
    for pod, _, spec in pods(rendered(name)):
        for each in containers(spec):
            assert {"cpu", "memory"} <= set(each["resources"]["requests"]), pod
            assert "memory" in each["resources"]["limits"], pod


@every_file
def test_started_alive_and_ready_are_three_questions(name: str) -> None:
    for component, found in deployments(rendered(name)).items():
        each = main_container(found)
        probes = [each[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
        assert all(probes[one] != probes[two] for one, two in ((0, 1), (0, 2), (1, 2))), component
        patience = [probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3) for probe in probes]
        assert patience[0] >= 30, component
        assert patience[1] > patience[2], f"{component}: it would be killed before it leaves rotation"


@pytest.mark.parametrize("name", [LEAST, DEV])
def test_being_alive_depends_on_no_other_server(name: str) -> None:
    for component, found in deployments(rendered(name)).items():
        each = main_container(found)
        if component in {"postgres", "redis", "qdrant"}:
            assert each["livenessProbe"]["tcpSocket"] == {"port": "server"}
            continue
        assert each["startupProbe"]["httpGet"]["path"] == "/healthz"
        assert each["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert each["readinessProbe"]["httpGet"]["path"] == "/readyz"


@every_file
def test_pods_are_killed_only_after_they_drained(name: str) -> None:
    for component, found in deployments(rendered(name)).items():
        spec, each = found["spec"]["template"]["spec"], main_container(found)
        if component in {"postgres", "redis", "qdrant"}:
            continue
        (command, seconds) = each["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        drain = float(variables(each).get("LORAUTER_DRAIN_SECONDS", 0))
        # gRPC drains and then HTTP does: lorauter.server.run
        assert spec["terminationGracePeriodSeconds"] >= int(seconds) + 2 * drain + 10, component


def test_draining_follows_its_settings() -> None:
    objects = changed(LEAST, ("preStopSeconds", 7), ("drainSeconds", 100))
    gateway = deployments(objects)["gateway"]
    assert main_container(gateway)["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert variables(main_container(gateway))["LORAUTER_DRAIN_SECONDS"] == "100"
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 222


@every_file
def test_replicas_are_spread_over_nodes_and_zones(name: str) -> None:
    for component, found in deployments(rendered(name)).items():
        if component in {"postgres", "redis", "qdrant"}:
            continue
        spec = found["spec"]["template"]["spec"]
        keys = [each["topologyKey"] for each in spec["topologySpreadConstraints"]]
        assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        for each in spec["topologySpreadConstraints"]:
            assert each["labelSelector"]["matchLabels"] == found["spec"]["selector"]["matchLabels"]


@every_file
def test_every_budget_matches_the_pods_of_one_deployment(name: str) -> None:
    budgets = {component_of(found): found for found in of_kind(rendered(name), "PodDisruptionBudget")}
    found = deployments(rendered(name))
    assert set(budgets) == set(found) - {"postgres", "redis", "qdrant"}
    for component, budget in budgets.items():
        taken = [
            other
            for other, each in found.items()
            if selects(budget["spec"]["selector"], each["spec"]["template"]["metadata"]["labels"])
        ]
        assert taken == [component]
        assert budget["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in budget["spec"], "it would keep a node with a single pod from draining"


@every_file
def test_selectors_take_pods_of_their_own_only(name: str) -> None:
    found = deployments(rendered(name))
    for component, each in found.items():
        selector = each["spec"]["selector"]
        taken = [pod for pod, metadata, _ in pods(rendered(name)) if selects(selector, metadata["labels"])]
        assert taken == [name_of(each)], component


@every_file
def test_every_service_reaches_ports_of_its_pods(name: str) -> None:
    found = deployments(rendered(name))
    services = of_kind(rendered(name), "Service")
    assert {component_of(service) for service in services} == set(found)
    for service in services:
        target = found[component_of(service)]
        labels = target["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        ports = {port["name"] for port in main_container(target)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_autoscalers_decide_how_many_gateways_and_routers_there_are() -> None:
    scalers = of_kind(rendered(MANY_GPUS), "HorizontalPodAutoscaler")
    found = deployments(rendered(MANY_GPUS))
    assert {component_of(scaler) for scaler in scalers} == {"gateway", "router"}
    for scaler in scalers:
        target = found[component_of(scaler)]
        assert scaler["spec"]["scaleTargetRef"]["name"] == target["metadata"]["name"]
        assert "replicas" not in target["spec"], "an upgrade would undo what the autoscaler decided"
        assert scaler["spec"]["minReplicas"] == 3
    assert not of_kind(rendered(LEAST), "HorizontalPodAutoscaler")
    assert deployments(rendered(LEAST))["router"]["spec"]["replicas"] == 2


def test_services_are_replaced_without_a_gap_where_the_store_allows_it() -> None:
    for component, each in deployments(rendered(MANY_GPUS)).items():
        strategy: Object = each["spec"]["strategy"]
        if SERVER not in each["metadata"]["labels"]:
            assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}, component
    registry = deployments(rendered(LEAST))["registry"]
    assert registry["spec"]["strategy"] == {"type": "Recreate"}, "one node mounts the store at a time"


def test_placement_reaches_the_pods() -> None:
    placement = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "priorityClassName": "high",
    }
    changes = [(f"router.{field}", value) for field, value in placement.items()]
    objects = changed(LEAST, *changes, ("router.podAnnotations", {"example.com/team": "search"}))
    template = deployments(objects)["router"]["spec"]["template"]
    assert placement.items() <= template["spec"].items()
    assert template["metadata"]["annotations"] == {"example.com/team": "search"}
    other = deployments(objects)["gateway"]["spec"]["template"]
    assert not set(placement) & set(other["spec"])
    assert COMPONENT in other["metadata"]["labels"]
