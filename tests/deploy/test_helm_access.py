"""Who gets in and by what: keys and other secrets by reference, TLS, and the ways from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from lorauter.access import read_key
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
    containers,
    deployments,
    main_container,
    of_kind,
    pods,
    rendered,
    variables,
)

SECRET = re.compile(r"(_URL|_KEY|PASSWORD|TOKEN)$")
NOT_SECRET = {"LORAUTER_REGISTRY_URL", "LORAUTER_TLS_KEY"}
"""An address without a password, and the path of a file."""
TLS = ("tls", {"existingSecret": "lorauter-tls", "mutual": False})
MUTUAL = ("tls", {"existingSecret": "lorauter-tls", "mutual": True})
INGRESS: tuple[tuple[str, object], ...] = (
    ("ingress", {"enabled": True, "className": "nginx", "host": "llm.example.com", "tlsSecret": "llm"}),
    ("networkPolicy.callers.gateway", [{"namespaceSelector": {}}]),
)


def environment(objects: Sequence[Object], component: str) -> dict[str, object]:
    """Returns the variables of a component's container."""
    return variables(main_container(deployments(objects)[component]))


def secret(name: str, key: str) -> dict[str, object]:
    """Returns where a variable comes from."""
    return {"secretKeyRef": {"name": name, "key": key}}


@pytest.mark.parametrize("name", FILES)
def test_secrets_are_named_and_never_written(name: str) -> None:
    assert not of_kind(rendered(name), "Secret")
    seen = set()
    for pod, _, spec in pods(rendered(name)):
        for each in containers(spec):
            for variable, value in variables({"env": each.get("env", [])}).items():
                if SECRET.search(variable) and variable not in NOT_SECRET:
                    assert "secretKeyRef" in value, (pod, variable)
                    seen.add(variable)
    assert {"DATABASE_URL", "REDIS_URL", "QDRANT_URL", "LORAUTER_BOOTSTRAP_KEY", "LORAUTER_API_KEY"} <= seen


@pytest.mark.parametrize("name", FILES)
def test_each_service_gets_the_secrets_that_it_needs_and_no_others(name: str) -> None:
    backends = {"LORAUTER_BACKEND_KEY"} if name != LEAST else set()
    expected = {
        "registry": {"DATABASE_URL", "REDIS_URL", "LORAUTER_BOOTSTRAP_KEY", "LORAUTER_GATEWAY_KEY"},
        "worker-index": {"DATABASE_URL", "REDIS_URL", "QDRANT_URL"},
        "worker-matching": {"DATABASE_URL", "REDIS_URL", "QDRANT_URL", *backends},
        "router": {"REDIS_URL", "QDRANT_URL"},
        "gateway": {"REDIS_URL", "LORAUTER_API_KEY", *backends},
    }
    for component, wanted in expected.items():
        given = environment(rendered(name), component)
        assert {each for each, value in given.items() if isinstance(value, dict)} == wanted, component


def test_keys_are_asked_for_unless_access_is_open() -> None:
    for component in ("registry", "router", "gateway"):
        assert environment(rendered(LEAST), component)["LORAUTER_ACCESS"] == "keys"
    for component in ("router", "gateway"):
        assert (
            environment(rendered(LEAST), component)["LORAUTER_REGISTRY_ADDRESS"]
            == "test-lorauter-registry:9090"
        )
    registry = environment(rendered(LEAST), "registry")
    assert registry["LORAUTER_BOOTSTRAP_KEY"] == secret("lorauter-bootstrap", "LORAUTER_BOOTSTRAP_KEY")
    gateway = environment(rendered(LEAST), "gateway")
    assert gateway["LORAUTER_API_KEY"] == secret("lorauter-gateway", "LORAUTER_API_KEY")
    assert registry["LORAUTER_GATEWAY_KEY"] == gateway["LORAUTER_API_KEY"]


def test_backends_may_be_where_the_chart_knows_of_them() -> None:
    def hosts(name: str, *changes: tuple[str, object]) -> object:
        return environment(changed(name, *changes), "registry").get("LORAUTER_BACKEND_HOSTS")

    assert hosts(LEAST) is None
    assert hosts(DEV) == "test-lorauter-engine"
    elsewhere = (("backends.hosts", ["gpu.example.com"]), ("networkPolicy.enabled", False))
    assert hosts(MANY_GPUS, *elsewhere) == "test-lorauter-tgi-support,test-lorauter-vllm-code,gpu.example.com"


def test_open_access_needs_no_keys() -> None:
    objects = changed(
        LEAST,
        ("access.mode", "open"),
        ("access.bootstrapKey.existingSecret", ""),
        ("access.gatewayKey.existingSecret", ""),
    )
    for component in ("registry", "router", "gateway"):
        given = environment(objects, component)
        assert given["LORAUTER_ACCESS"] == "open"
        assert not {
            "LORAUTER_BOOTSTRAP_KEY",
            "LORAUTER_GATEWAY_KEY",
            "LORAUTER_API_KEY",
            "LORAUTER_REGISTRY_ADDRESS",
        } & set(given)


def test_addresses_are_those_of_services_and_ports_in_the_release() -> None:
    ports = {
        f"{each['metadata']['name']}:{port['port']}"
        for each in of_kind(rendered(DEV), "Service")
        for port in each["spec"]["ports"]
    }
    named = {
        re.sub(r"^\w+(\+\w+)?://", "", str(value))
        for _, _, spec in pods(rendered(DEV))
        for each in containers(spec)
        for value in [*variables({"env": each.get("env", [])}).values(), *each.get("command", [])]
        if isinstance(value, str) and value.rpartition(":")[2] in {"8080", "9090"} and ":" in value
    }
    assert len(named) > 4
    assert named <= ports


def test_certificates_reach_every_service_and_probes_follow() -> None:
    objects = changed(LEAST, TLS)
    for component, found in deployments(objects).items():
        container = main_container(found)
        given = variables(container)
        assert given["LORAUTER_TLS_CERTIFICATE"] == "/etc/lorauter/tls/tls.crt", component
        assert given["LORAUTER_TLS_KEY"] == "/etc/lorauter/tls/tls.key"
        assert given["LORAUTER_TLS_CA"] == "/etc/lorauter/tls/ca.crt"
        assert "LORAUTER_TLS_CLIENT_CA" not in given
        (mount,) = (each for each in container["volumeMounts"] if each["name"] == "tls")
        assert mount == {"name": "tls", "mountPath": "/etc/lorauter/tls", "readOnly": True}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["scheme"] == "HTTPS", component


def test_pods_ask_themselves_where_callers_must_show_a_certificate() -> None:
    script = "/opt/healthcheck.py"
    assert (
        f"COPY deploy/docker/healthcheck.py {script}"
        in (ROOT / "deploy" / "docker" / "gateway.Dockerfile").read_text()
    )
    for component, found in deployments(changed(LEAST, MUTUAL)).items():
        container = main_container(found)
        assert variables(container)["LORAUTER_TLS_CLIENT_CA"] == "/etc/lorauter/tls/ca.crt"
        commands = [
            container[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "liveness", "readiness")
        ]
        assert [command[-1] for command in commands] == ["/healthz", "/healthz", "/readyz"], component
        assert all(script in command for command in commands)


def test_the_test_pod_trusts_the_certificate() -> None:
    ((_, _, spec),) = (each for each in pods(changed(LEAST, MUTUAL)) if each[0].startswith("Pod/"))
    given = variables(spec["containers"][0])
    assert given["LORAUTER_REGISTRY_URL"].startswith("https://")
    assert given["LORAUTER_TLS_CA"] == "/etc/lorauter/tls/ca.crt"
    assert given["LORAUTER_API_KEY"] == secret("lorauter-bootstrap", "LORAUTER_BOOTSTRAP_KEY")


def test_prometheus_shows_a_certificate_where_it_must() -> None:
    monitors = {each["metadata"]["name"]: each for each in of_kind(rendered(MANY_GPUS), "ServiceMonitor")}
    (endpoint,) = monitors["test-lorauter"]["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert {"ca", "cert", "keySecret"} <= set(endpoint["tlsConfig"])
    (endpoint,) = monitors["test-lorauter-tgi"]["spec"]["endpoints"]
    assert "scheme" not in endpoint, "inference servers speak plain HTTP"


def test_ingress_carries_http_over_tls_to_the_gateway() -> None:
    (ingress,) = of_kind(changed(LEAST, *INGRESS), "Ingress")
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"hosts": ["llm.example.com"], "secretName": "llm"}]
    (rule,) = ingress["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "test-lorauter-gateway", "port": {"name": "http"}}
    assert not of_kind(rendered(LEAST), "Ingress", "HTTPRoute", "GRPCRoute")


def test_routes_carry_http_and_grpc_to_the_gateway_by_names_of_their_own() -> None:
    (http,) = of_kind(rendered(MANY_GPUS), "HTTPRoute")
    (grpc,) = of_kind(rendered(MANY_GPUS), "GRPCRoute")
    assert http["spec"]["rules"][0]["backendRefs"] == [{"name": "test-lorauter-gateway", "port": 8080}]
    assert grpc["spec"]["rules"][0]["backendRefs"] == [{"name": "test-lorauter-gateway", "port": 9090}]
    assert not set(http["spec"]["hostnames"]) & set(grpc["spec"]["hostnames"])
    proto = (ROOT / "protos" / "lorauter" / "gateway" / "v1" / "gateway.proto").read_text()
    service = grpc["spec"]["rules"][0]["matches"][0]["method"]["service"]
    package, _, name = service.rpartition(".")
    assert f"package {package};" in proto
    assert f"service {name} " in proto


def test_grpc_callers_find_every_pod_and_prometheus_finds_each_once() -> None:
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(rendered(LEAST), "Service")}
    for name in ("test-lorauter-router", "test-lorauter-gateway-grpc"):
        assert services[name]["clusterIP"] == "None"
        assert "grpc" in {port["name"] for port in services[name]["ports"]}
    assert "clusterIP" not in services["test-lorauter-gateway"]
    assert [port["name"] for port in services["test-lorauter-gateway-grpc"]["ports"]] == ["grpc"]


def test_services_of_the_release_alone_are_published() -> None:
    for name in FILES:
        for service in of_kind(rendered(name), "Service"):
            assert service["spec"].get("type", "ClusterIP") == "ClusterIP", component_of(service)


def test_no_password_or_key_is_written_in_chart_or_examples() -> None:
    for path in CHART.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"://[^\s:/@]+:[^\s@{}()]+@", text), path
            found = re.findall(r"lra_\w+", text)
            assert not [key for key in found if read_key(key)], path
