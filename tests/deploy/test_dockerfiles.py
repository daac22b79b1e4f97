"""Images are small, exact, run as nobody in particular, and start what their distribution declares."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import import_module, metadata
from pathlib import Path

import pytest
from scripts.try_image import Stage, stages

from lorauter.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "docker"
SERVICES = ("registry", "worker", "router", "gateway", "engine")
IMAGES = (*SERVICES, "cli")
DISTRIBUTION = {"cli": "suite"}
"""Of an image that has another name."""

every_image = pytest.mark.parametrize("image", IMAGES)
every_service = pytest.mark.parametrize("service", SERVICES)


def last(image: str) -> Stage:
    return stages(image)[-1]


def all_of(stage: Stage, word: str) -> list[str]:
    return [rest for one, rest in stage.instructions if one == word]


def only(stage: Stage, word: str) -> str:
    (found,) = all_of(stage, word)
    return found


def environment(image: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in only(last(image), "ENV").split())


def test_there_is_an_image_for_every_service_and_the_command() -> None:
    assert {path.name for path in FOLDER.glob("*.Dockerfile")} == {f"{name}.Dockerfile" for name in IMAGES}


@every_image
def test_dockerfile_is_clean(image: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [str(hadolint), "--no-color", str(FOLDER / f"{image}.Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@every_image
def test_base_is_one_exact_version(image: str) -> None:
    bases = {only(stage, "FROM").split()[0] for stage in stages(image)}
    (base,) = bases - {"build"}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", base)
    assert f'base.name="docker.io/library/{base}"' in only(last(image), "LABEL")


@every_image
def test_program_runs_as_an_ordinary_user(image: str) -> None:
    stage = last(image)
    assert only(stage, "USER") == "65532:65532"
    words = [word for word, _ in stage.instructions]
    assert {"RUN", "COPY"}.isdisjoint(words[words.index("USER") :])


@every_image
def test_nothing_but_tmp_need_be_written(image: str) -> None:
    found = environment(image)
    assert (found["HOME"], found["TMPDIR"], only(last(image), "WORKDIR")) == ("/tmp", "/tmp", "/tmp")
    assert found["PYTHONDONTWRITEBYTECODE"] == "1"


@every_image
def test_entrypoint_is_the_program_of_the_distribution(image: str) -> None:
    (program,) = json.loads(only(last(image), "ENTRYPOINT"))
    folder = f"services/{DISTRIBUTION.get(image, image)}"
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(project["scripts"]) == [program]
    assert f"{folder} {folder}" in all_of(stages(image)[0], "COPY")


@every_image
def test_every_installation_keeps_to_the_lock(image: str) -> None:
    for stage in stages(image)[:-1]:
        for run in all_of(stage, "RUN"):
            installs = run.count(" install ")
            assert run.count("--constraint requirements.lock") == installs, run
            assert "pip wheel" not in run or {"--no-deps", "--no-build-isolation"} <= set(run.split())
    assert not any("pip" in run for run in all_of(last(image), "RUN"))


@every_image
def test_labels_name_title_and_version(image: str) -> None:
    label = only(last(image), "LABEL")
    assert f'title="lorauter-{image}"' in label
    assert f"VERSION={metadata.version('lorauter')}" in all_of(last(image), "ARG")
    for key in ("description", "licenses", "version", "revision"):
        assert f'org.opencontainers.image.{key}="' in label


@every_service
def test_container_is_asked_whether_it_lives(service: str) -> None:
    check = only(last(service), "HEALTHCHECK")
    command = json.loads(check.partition(" CMD ")[2])
    assert command[-2:] == ["/opt/healthcheck.py", "/healthz"]
    assert "deploy/docker/healthcheck.py /opt/healthcheck.py" in all_of(last(service), "COPY")


@every_service
def test_ports_and_settings_are_those_of_the_service(service: str) -> None:
    settings: type[ServiceSettings] = import_module(f"lorauter_{service}.config").Settings
    given = {name: value for name, value in environment(service).items() if name.startswith("LORAUTER_")}
    assert set(given) <= {settings.variable_name(field) for field in settings.model_fields}
    ports = {value for name, value in given.items() if name.endswith("_PORT")}
    assert set(only(last(service), "EXPOSE").split()) == ports
    assert given["LORAUTER_HOST"] == "0.0.0.0"


@pytest.mark.parametrize("image", ["router", "worker"])
def test_encoder_is_exported_in_both_precisions_by_torch_that_stays_behind(image: str) -> None:
    build, encoder, final = stages(image)
    assert not any("encoder-export" in run for run in all_of(build, "RUN"))
    export = all_of(encoder, "RUN")[-1]
    assert export.count("-m lorauter.encoder") == 2
    assert "--precision int8" in export
    cache = f"XDG_CACHE_HOME={environment(image)['XDG_CACHE_HOME']}"
    assert only(encoder, "ENV") == cache
    assert "--from=encoder /opt/cache /opt/cache" in all_of(final, "COPY")


def test_context_holds_what_is_copied_and_little_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    copied = {
        rest.split()[0]
        for image in IMAGES
        for stage in stages(image)
        for rest in all_of(stage, "COPY")
        if "--from=" not in rest
    }
    assert all(any(path == one or path.startswith(f"{one}/") for one in kept) for path in copied)
    assert all(any(fnmatch(path, f"{one}*") for path in copied) for one in kept)
