"""Chart and settings classes agree: what it sets is read, and what it lets through is known."""

from __future__ import annotations

import importlib.util
import json
import re
from types import ModuleType

import pytest
import yaml

from lorauter.access import make_key
from lorauter.settings import TENANT_PATTERN
from tests.deploy.charts import (
    CHART,
    DEV,
    FILES,
    LEAST,
    MANY_GPUS,
    ROOT,
    Object,
    changed,
    deployments,
    main_container,
    refusal,
    rendered,
    settings_of,
    variables,
)

SERVICES = ("registry", "worker", "router", "gateway", "engine")
URLS = {
    "DATABASE_URL": "postgresql://user@host/name",
    "REDIS_URL": "redis://host/0",
    "QDRANT_URL": "http://host:6333",
}
KEY = make_key()
TRACED = (
    ("traces.endpoint", "http://collector:4318"),
    ("traces.peers", [{"ipBlock": {"cidr": "10.0.0.9/32"}}]),
)
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script behind `make settings`."""
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "scripts" / "settings_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def services(name: str, *changes: tuple[str, object]) -> list[tuple[str, Object]]:
    """Returns the service and the container of every Deployment of one of ours."""
    objects = changed(name, *changes) if changes else rendered(name)
    found = (main_container(each) for each in deployments(objects).values())
    return [(each["name"], each) for each in found if each["name"] in SERVICES]


def test_schema_of_the_values_is_current(script: ModuleType) -> None:
    assert script.CHART_SCHEMA.read_text(encoding="utf-8") == script.chart_schema(), "run `make settings`"


@pytest.mark.parametrize("name", FILES)
def test_variables_are_those_that_the_service_reads(name: str) -> None:
    for service, container in services(name):
        settings = settings_of(service)
        known = {settings.variable_name(field): info for field, info in settings.model_fields.items()}
        given = [variable["name"] for variable in container["env"]]
        assert len(given) == len(set(given)), service
        assert set(given) <= set(known), f"{service} does not read this"
        assert {one for one, info in known.items() if info.is_required()} <= set(given), service


def test_what_the_chart_sets_itself_is_not_offered_twice(script: ModuleType) -> None:
    everywhere = ("tls", {"existingSecret": "tls", "mutual": True})
    given = {
        variable
        for name in (DEV, MANY_GPUS)
        for _, container in services(name, everywhere)
        for variable in variables(container)
    }
    own = {"LORAUTER_CONCURRENCY", "LORAUTER_MATCHING_RATE", "LORAUTER_QUERY_CACHE"} | {
        *("LORAUTER_REQUEST_TIMEOUT_SECONDS", "LORAUTER_ADAPTER_ROOTS")
    }
    assert given - own == script.SET_BY_CHART


def test_a_tenant_has_the_form_that_services_take() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["tenant"]["pattern"] == TENANT_PATTERN


def closed(schema: object, path: str = "") -> list[str]:
    """Returns where a schema takes names that it does not know."""
    if isinstance(schema, list):
        return [found for index, each in enumerate(schema) for found in closed(each, f"{path}/{index}")]
    if not isinstance(schema, dict):
        return []
    is_open = schema.get("type") == "object" and not {"additionalProperties"} & set(schema)
    found = [path] if is_open else []
    return [*found, *(each for key, inner in schema.items() for each in closed(inner, f"{path}/{key}"))]


def test_schema_knows_every_name_of_the_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert closed(schema) == ["/properties/global"], "Helm passes this one to subcharts"
    assert schema["additionalProperties"] is False


def test_every_value_of_an_inference_server_is_documented() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    page = (ROOT / "docs" / "operations" / "kubernetes.md").read_text()
    table = page.split("`inference` is a list:")[1].split("\n\nAfter")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {name.split(".")[0] for cell in first_cells for name in re.findall(r"`([\w.]+)`", cell)}
    assert documented == set(schema["$defs"]["inference"]["properties"])


def test_every_other_setting_may_be_given() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    for service in SERVICES:
        offered = schema["$defs"][f"{service}Settings"]["properties"]
        assert len(offered) > 10, service
        assert all(each["description"] for each in offered.values()), service


@pytest.mark.parametrize("name", FILES)
def test_values_are_those_that_the_service_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for service, container in services(name):
        with monkeypatch.context() as environment:
            for variable, value in variables(container).items():
                if variable.startswith("LORAUTER_TLS_"):
                    continue  # names files that are not here; tests/integration has real ones
                secret = URLS.get(variable, KEY)
                environment.setenv(variable, value if isinstance(value, str) else secret)
            assert settings_of(service).load().http_port == 8080, service


@pytest.mark.parametrize(
    "component", ["registry", "worker-index", "worker-matching", "router", "gateway", "engine"]
)
def test_chart_and_compose_file_give_a_service_the_same(component: str) -> None:
    whole = (("adapterStore.accessModes", ["ReadWriteMany"]), *TRACED)
    container = main_container(deployments(changed(DEV, *whole))[component])
    offered = json.loads((CHART / "values.schema.json").read_text())["$defs"][f"{container['name']}Settings"]
    given, composed = set(variables(container)), set(COMPOSE["services"][component]["environment"])
    if component == "worker-index":
        composed -= {"LORAUTER_BACKEND_KEY"}  # it calls no inference server
    assert composed - given <= set(offered["properties"]), "no value of the chart gives this"
    required = {each for each in given if each.endswith(("_URL", "_KEY", "_ADDRESS", "_STORE"))}
    assert required <= composed, "the compose file does not give this"


def test_further_settings_reach_the_service() -> None:
    changes = (
        ("worker.matching.config", {"LORAUTER_MATCHING_RATE": 2.5, "LORAUTER_CONCURRENCY": 1000000}),
        ("gateway.config", {"LORAUTER_LOG_FORMAT": "text"}),
    )
    found = {
        component: variables(main_container(each))
        for component, each in deployments(changed(LEAST, *changes)).items()
    }
    assert found["worker-matching"]["LORAUTER_MATCHING_RATE"] == "2.5"
    assert found["worker-matching"]["LORAUTER_CONCURRENCY"] == "1000000"
    assert "LORAUTER_MATCHING_RATE" not in found["worker-index"]
    assert found["gateway"]["LORAUTER_LOG_FORMAT"] == "text"


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        ("registry.config", "LORAUTER_MAX_RANK"),  # it is LORAUTER_MAX_ADAPTER_RANK
        ("worker.index.config", "LORAUTER_SWEEP_SECOND"),
        ("router.config", "LORAUTER_HOST"),  # the chart sets it
        ("gateway.config", "REDIS_URL"),  # it may hold a password
        ("gateway.config", "lorauter_log_format"),
    ],
)
def test_a_setting_that_the_service_does_not_take_is_refused(path: str, setting: str) -> None:
    message = refusal(LEAST, (path, {setting: "1"}))
    assert setting in message
    assert path.replace(".", "/") in message.replace(".", "/")
