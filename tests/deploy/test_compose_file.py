"""docker-compose.yml is valid, exact and closed to others, and says what services, images and pages say."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module, metadata
from typing import Any

import pytest
import yaml
from scripts.try_image import stages

from lorauter.access import read_key
from lorauter.settings import ServiceSettings
from tests.topology.compose import (
    DEVELOPMENT,
    FILE,
    ROOT,
    VARIABLE,
    Container,
    VariableMissing,
    containers,
    read_variables,
)

PAGE = ROOT / "docs" / "operations" / "compose.md"
EXAMPLE = ROOT / "deploy" / "compose" / "example.env"
RAW: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]
KNOWN = read_variables(DEVELOPMENT)
CONTAINERS = containers(KNOWN)
OURS = {name: each for name, each in CONTAINERS.items() if each.dockerfile}
SERVICES = {name: each for name, each in OURS.items() if each.dockerfile != "cli"}
DAEMONS = {name: each for name, each in CONTAINERS.items() if "restart" in each.document}
ONCE = {name: each for name, each in OURS.items() if "restart" not in each.document}
PORTS = {"postgres": {"5432"}, "redis": {"6379"}, "qdrant": {"6333"}, "prometheus": {"9090"}}
"""What others' images listen on."""


def each_of(found: dict[str, Container]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("container", found.values(), ids=found)


def last_words(container: Container, word: str) -> list[str]:
    return [rest for one, rest in stages(container.dockerfile)[-1].instructions if one == word]


def settings_of(container: Container) -> type[ServiceSettings]:
    module = import_module(f"lorauter_{container.dockerfile}.config")
    found: type[ServiceSettings] = (
        module.DatabaseSettings if container.command == ("migrate",) else module.Settings
    )
    return found


def installed(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_file_keeps_to_the_compose_schema() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(FILE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("compose", [each for each in (["docker", "compose"],) if installed(each)])
def test_compose_itself_takes_the_file(compose: list[str]) -> None:
    every = ["--profile", "demo", "--profile", "gpu", "--profile", "observability"]
    command = [*compose, "-f", str(FILE), "--env-file", str(DEVELOPMENT), *every, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@each_of(CONTAINERS)
def test_image_names_an_exact_version(container: Container) -> None:
    name, _, tag = container.document["image"].rpartition(":")
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?", tag), container.document["image"]
    if container.dockerfile:
        assert (name, tag) == (f"lorauter-{container.dockerfile}", metadata.version("lorauter"))
        assert (ROOT / container.document["build"]["dockerfile"]).is_file()
        raw = RAW[container.name]["image"]
        assert raw == f"${{LORAUTER_IMAGES:-lorauter}}-{container.dockerfile}:${{LORAUTER_VERSION:-{tag}}}"


@each_of(CONTAINERS)
def test_ports_are_bound_to_loopback_unless_somebody_says_otherwise(container: Container) -> None:
    raw = RAW[container.name].get("ports", ())
    loopback = "127.0.0.1:"
    chosen = "${LORAUTER_PUBLISH_ADDRESS:-127.0.0.1}:"
    allowed = (loopback, chosen) if container.dockerfile else loopback
    assert all(port.startswith(allowed) for port in raw)


def test_no_port_is_published_twice() -> None:
    published = [port.rsplit(":", 1)[0] for each in CONTAINERS.values() for port in each.published]
    assert len(published) == len(set(published))


@each_of(DAEMONS)
def test_daemon_says_when_it_can_work(container: Container) -> None:
    assert {"test", "interval", "timeout", "retries"} <= set(container.document["healthcheck"])


@each_of(ONCE)
def test_what_runs_once_says_by_its_end_that_it_is_done(container: Container) -> None:
    assert "healthcheck" not in container.document
    followers = [each for each in CONTAINERS.values() if container.name in each.needs]
    conditions = {each.document["depends_on"][container.name]["condition"] for each in followers}
    # nothing waits for the demo pool
    assert conditions == (set() if container.name == "seed" else {"service_completed_successfully"})


@each_of(OURS)
def test_container_may_do_little(container: Container) -> None:
    document = container.document
    assert (document["read_only"], document["tmpfs"], document["cap_drop"]) == (True, ["/tmp"], ["ALL"])
    assert document["security_opt"] == ["no-new-privileges:true"]
    assert document["init"] is True


@each_of(OURS)
def test_volume_that_is_written_belongs_to_the_user_of_the_image(container: Container) -> None:
    made = " ".join(last_words(container, "RUN"))
    for mount in container.mounts:
        if not mount.read_only:
            assert f"--owner=65532 --group=65532 {mount.target}" in made, mount


@each_of(CONTAINERS)
def test_what_is_mounted_from_the_repository_is_there(container: Container) -> None:
    named = set(yaml.safe_load(FILE.read_text(encoding="utf-8"))["volumes"])
    for mount in container.mounts:
        if mount.source.startswith(".") and mount.target != "/srv/lorauter/incoming":
            assert (ROOT / mount.source).exists(), mount
        elif not mount.source.startswith("."):
            assert mount.source in named


@each_of(SERVICES)
def test_service_gets_settings_that_it_has_and_takes(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(container)
    names = {settings.variable_name(field) for field in settings.model_fields}
    assert set(container.environment) <= names
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in container.environment.items():
        assert isinstance(value, str), name
        monkeypatch.setenv(name, value)
    assert settings()


@each_of(ONCE)
def test_command_gets_variables_that_are_documented(container: Container) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in container.environment)


@each_of(OURS)
def test_addresses_are_those_of_containers_that_it_waits_for(container: Container) -> None:
    text = " ".join((*container.environment.values(), *container.command))
    listening = {name: set(" ".join(last_words(each, "EXPOSE")).split()) for name, each in OURS.items()}
    for host, port in re.findall(r"\b([a-z-]+):(\d{2,5})\b", text):
        assert port in {**listening, **PORTS}[host], f"{host}:{port}"
        if host in ("redis", "qdrant"):
            assert host in container.needs
        if host == "postgres":
            assert {"migrate", "postgres"} & set(container.needs)


@each_of(SERVICES)
def test_ports_are_those_of_the_image(container: Container) -> None:
    exposed = set(" ".join(last_words(container, "EXPOSE")).split())
    if container.name in DAEMONS:
        given = {value for name, value in container.environment.items() if name.endswith("_PORT")}
        assert given == exposed
    assert {port.rsplit(":", 1)[1] for port in container.published} <= exposed


@each_of({name: each for name, each in SERVICES.items() if name in DAEMONS})
def test_container_is_killed_only_after_it_had_time_to_drain(container: Container) -> None:
    grace = int(container.document["stop_grace_period"].removesuffix("s"))
    assert grace > float(container.environment["LORAUTER_DRAIN_SECONDS"])


def test_prometheus_scrapes_every_container_of_ours() -> None:
    configured = yaml.safe_load((ROOT / "deploy" / "observability" / "prometheus.yml").read_text())
    scraped = {
        target
        for job in configured["scrape_configs"]
        for each in job["static_configs"]
        for target in each["targets"]
    }
    assert scraped == {f"{name}:8080" for name in SERVICES if name in DAEMONS}


def variables(how: str | None = None) -> set[str]:
    """Returns the names of the file's variables: all, or those that are used in one way."""
    text = "\n".join(line for line in FILE.read_text(encoding="utf-8").splitlines() if line[:1] != "#")
    return {each["name"] for each in VARIABLE.finditer(text) if each["name"] and how in (None, each["how"])}


def test_no_secret_has_a_default() -> None:
    assert all(re.search("PASSWORD|KEY$|TOKEN", name) for name in variables(":?"))
    assert variables(":?") == set(KNOWN)
    secrets = {name for name in variables() if re.search("PASSWORD|KEY$", name)}
    assert secrets == variables(":?")


@pytest.mark.parametrize("name", KNOWN)
def test_missing_secret_is_named_with_what_to_do(name: str) -> None:
    with pytest.raises(VariableMissing, match=rf"{name}: set it in .* see deploy/compose/example\.env"):
        containers({**KNOWN, name: ""})


def test_example_lists_every_variable_and_no_secret() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    listed = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert set(listed) == variables()
    assert not any(listed[name] for name in KNOWN)
    assert read_variables(EXAMPLE) == dict.fromkeys(KNOWN, "")


def test_known_secrets_are_said_to_be_known() -> None:
    assert "whoever reads this file knows" in DEVELOPMENT.read_text(encoding="utf-8")
    for name in ("LORAUTER_BOOTSTRAP_KEY", "LORAUTER_GATEWAY_KEY"):
        assert read_key(KNOWN[name]) is not None


def test_page_tells_every_profile_variable_and_address() -> None:
    text = PAGE.read_text(encoding="utf-8")
    profiles = {profile for each in CONTAINERS.values() for profile in each.document.get("profiles", ())}
    assert all(f"`{profile}`" in text for profile in profiles)
    assert all(f"`{name}`" in text for name in variables())
    assert all(f"`{name}`" in text for name in CONTAINERS)


def test_exported_addresses_are_those_of_the_published_ports() -> None:
    exported = dict(re.findall(r"^export (\w+)=([^\s…]+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    given = {**CONTAINERS["seed"].environment, **CONTAINERS["worker-index"].environment}
    assert {"DATABASE_URL", "REDIS_URL", "QDRANT_URL"} <= set(exported) <= set(given)
    here = {
        f"{each.name}:{inside}": f"127.0.0.1:{outside}"
        for each in CONTAINERS.values()
        for _, outside, inside in (port.split(":") for port in each.published)
    }
    for name, value in exported.items():
        assert value == re.sub(r"\b[a-z-]+:\d+", lambda found: here[found[0]], given[name])
